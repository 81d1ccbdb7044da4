from __future__ import annotations

import subprocess
import sys

import pytest

from letgo.attacks import ATTACKS
from letgo.benchmarks import BENCHMARKS
from letgo.core.catalog import (
    Catalog,
    Record,
    format_spec,
    links_of,
    parse_chain,
    parse_spec,
    parse_value,
    split_chain,
)
from letgo.core.errors import UserError
from letgo.metrics import METRICS
from letgo.objectives import OBJECTIVES, RETAIN_TERMS
from letgo.optim import OPTIMIZERS

ALL = [OPTIMIZERS, OBJECTIVES, RETAIN_TERMS, ATTACKS, BENCHMARKS, METRICS]


@pytest.mark.parametrize("catalog", ALL, ids=lambda catalog: catalog.kind)
def test_every_record_leads_to_something_with_a_docstring(catalog):
    assert len(catalog) > 0
    for record in catalog:
        if record.extra is None:
            target = catalog.load(record.name)
            assert callable(target)
            assert target.__doc__, f"{record.name} has no docstring"


def record(name, **more):
    return Record(name=name, target="math:sqrt", summary="s", source="s", faithfulness="ours", **more)


def test_names_aliases_case_and_dashes():
    catalog = Catalog("thing", [record("zo_sgd", aliases=("mezo",)), record("adam")])
    assert catalog.record("ZO-SGD").name == "zo_sgd"
    assert catalog.record("MeZO").name == "zo_sgd"
    assert catalog.names("*ad*") == ["adam"]
    assert catalog.load("adam")(9.0) == 3.0


def test_unknown_name_suggests_the_nearest():
    catalog = Catalog("thing", [record("zo_sgd"), record("adam")])
    with pytest.raises(UserError, match="did you mean 'adam'"):
        catalog.record("adma")


def test_a_name_listed_twice_is_refused():
    with pytest.raises(ValueError, match="listed twice"):
        Catalog("thing", [record("adam"), record("sgd", aliases=("ADAM",))])


def test_a_variant_must_say_how_it_differs():
    with pytest.raises(ValueError, match="must say how"):
        Record(name="x", target="a:b", summary="", source="", faithfulness="variant")


def test_missing_extra_names_the_install_line():
    missing = Record(
        name="x", target="no_such_package_here:y", summary="", source="", faithfulness="library", extra="heavy"
    )
    with pytest.raises(UserError, match=r"in letgo's checkout, pip install '\.\[heavy\]' \(letgo\[heavy\]\)"):
        Catalog("thing", [missing]).load("x")


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-4", 1e-4), ("true", True), ("None", None), ("adamw", "adamw"), (" 0.5 ", 0.5), ("-2", -2)],
)
def test_values(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_spec_round_trip():
    spec = "relearn:steps=20,learning_rate=1e-05,optimizer=adamw,fresh=True"
    name, settings = parse_spec(spec)
    assert settings == {"steps": 20, "learning_rate": 1e-5, "optimizer": "adamw", "fresh": True}
    assert format_spec(name, settings) == spec
    assert parse_spec("quantize:double") == ("quantize", {"double": True})


@pytest.mark.parametrize("spec", ["", ":bits=4", "quantize:=4", "quantize:bits=4,bits=3"])
def test_bad_specs(spec):
    with pytest.raises(UserError):
        parse_spec(spec)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("letgo.optim", "transformers"),
        ("letgo", "torch"),
        ("letgo.cli", "torch"),
        ("letgo.objectives", "transformers"),
    ],
)
def test_imports_stay_light(module, unwanted):
    code = f"import {module}, sys; assert {unwanted!r} not in sys.modules, 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("spec", "links"),
    [
        ("a:x=1", [("a", {"x": 1})]),
        ("a:x=1 then b:x=2,y then c", [("a", {"x": 1}), ("b", {"x": 2, "y": True}), ("c", {})]),
        ("a then a", [("a", {}), ("a", {})]),
        ("a:text=now then, b", [("a", {"text": "now then", "b": True})]),
        ("a:text=now then say it", [("a", {"text": "now then say it"})]),
    ],
)
def test_a_chain_is_its_links(spec, links):
    assert [parse_spec(link) for link in split_chain(spec)] == links
    name, settings = parse_chain(spec)
    assert links_of(name, settings) == links
    assert parse_chain(format_spec(name, settings)) == (name, settings)


@pytest.mark.parametrize("spec", ["a then b:=1", "a:=1 then b", "a:x=1,x=2 then b"])
def test_every_link_of_a_chain_is_checked(spec):
    with pytest.raises(UserError):
        parse_chain(spec)
