"""`letgo list KIND NAME`: all settings of one thing, with what each means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from letgo.cli.showing import _beside, _catalog
from letgo.core.explain import explained, settings_shown

KINDS = ["optimizers", "objectives", "retain-losses", "attacks", "benchmarks", "analyses"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_letgos_has_a_type_a_default_and_a_meaning(kind):
    catalog = _catalog(kind)
    shown = 0
    for record in catalog:
        if record.extra is not None and not record.target.startswith("letgo."):
            continue
        about = explained(catalog, record.name, *_beside(kind, catalog, record.name))
        file, _, line = about["file"].rpartition(":")
        assert Path(file).is_file(), record.name
        assert int(line) > 0
        for setting in about["settings"]:
            shown += 1
            assert setting["type"], (record.name, setting)
            assert setting["meaning"], (record.name, setting)
            assert setting["name"] not in ("self", "params", "model", "victim", "reference_head"), record.name
    assert shown > 3 or kind == "retain-losses"


def test_list_of_one_name_gives_its_settings(letgo):
    code, out, err = letgo("list", "optimizers", "MeZO")
    assert code == 0, err
    text = " ".join(out.split())
    assert text.startswith("zo_sgd [zeroth]: gradient descent on an estimate from loss differences")
    assert "MeZO, arXiv 2305.17333" in text
    assert "zeroth_order.py:" in out
    assert "noise = rademacher (one of rademacher, gaussian, sphere)" in text
    assert "the perturbation's root mean square per coordinate" in text
    code, out, _ = letgo("list", "optimizers", "fozo", "--json")
    [about] = json.loads(out)
    settings = {setting["name"]: setting for setting in about["settings"]}
    assert settings["zo"]["default"] == "ada_zo"
    assert settings["zo_steps"]["type"].startswith("a whole number")
    assert (about["name"], about["faithfulness"], about["grade"]) == ("fozo", "variant", "hybrid")


def test_list_of_an_objective_has_the_settings_of_its_retain_term_and_none_of_the_runs(letgo):
    _, out, _ = letgo("list", "objectives", "rmu", "--json")
    [about] = json.loads(out)
    names = [setting["name"] for setting in about["settings"]]
    assert {"steering", "layer"} <= {*names} or {"coefficient", "layer"} <= {*names}
    assert not {"model", "forget", "retain", "reference_head"} & {*names}


def test_list_of_an_attack_has_what_any_attack_may_be_given(letgo):
    _, out, _ = letgo("list", "attacks", "quantize", "--json")
    [about] = json.loads(out)
    settings = {setting["name"]: setting for setting in about["settings"]}
    assert {"bits", "granularity", "threshold", "search", "seeds"} <= {*settings}
    assert settings["seed"]["meaning"] == "changes nothing: nothing is random here"


def test_list_of_a_path_shows_a_users_own(letgo):
    code, out, err = letgo("list", "optimizers", "torch.optim:Adagrad")
    assert code == 0, err
    assert "yours: torch.optim.Adagrad" in out
    assert "lr_decay = 0" in out
    code, _, err = letgo("list", "optimizers", "torch.optim.Adagard")
    assert code == 2
    assert "did you mean 'Adagrad'" in err
    code, _, err = letgo("list", "optimizers", "adazoo")
    assert code == 2
    assert "did you mean 'adazo'" in err


def test_meanings_are_read_from_a_bases_docstring_and_from_several_names_at_once():
    class Base:
        """Base.

        Args (for all):
            first, second: what both are,
                on two lines.

                And a paragraph.
            third (`float`, defaults to 1.0):
                on the next line.

        Source: nobody.
            fourth: not an argument.
        """

    class Derived(Base):
        """Derived.

        Args:
            second: what it is here.
        """

        def __init__(self, first: int, second: str = "x", third: float = 1.0, fourth: bool = False) -> None:
            """What the constructor says."""

    shown = {setting.name: setting for setting in settings_shown(Derived)}
    assert shown["first"].meaning == "what both are, on two lines. And a paragraph."
    assert (shown["first"].type, shown["first"].default) == ("a whole number of at least 0", None)
    assert (shown["second"].meaning, shown["second"].default) == ("what it is here.", "x")
    assert shown["third"].meaning == "on the next line."
    assert (shown["fourth"].meaning, shown["fourth"].default) == ("", "False")
