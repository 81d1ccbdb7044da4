"""What is to be forgotten, and how it is told whether it was: data and scores, a file a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letgo.catalog import Catalog, Record, parse_spec
from letgo.errors import UserError

BENCHMARKS: Catalog[Record] = Catalog(
    "benchmark",
    [
        Record(
            name="biographies",
            target="letgo.benchmarks.biographies:biographies",
            summary="facts about fictional people; shipped tiny model and its retrained counterpart; offline",
            source="letgo; rows shaped as TOFU's (arXiv 2401.06121), texts as MUSE's (arXiv 2407.06460)",
            faithfulness="ours",
        ),
        Record(
            name="capitals",
            target="letgo.benchmarks.capitals:capitals",
            summary="capitals of 20 countries, which a pretrained model knows, against all other countries; offline",
            source="letgo",
            faithfulness="ours",
        ),
        Record(
            name="rows",
            target="letgo.benchmarks.own_rows:own_rows",
            summary="your own forget and retain files, scored by probability and ROUGE",
            source="letgo",
            faithfulness="ours",
        ),
    ],
)


def create_benchmark(spec: str, **more: Any) -> Any:
    """The benchmark that "NAME:key=value,…" means; see `letgo.benchmarks.base.Benchmark`. `more` are settings given
    beside the text."""
    name, settings = parse_spec(spec)
    settings = {**settings, **more}
    BENCHMARKS.check_settings(name, settings)
    try:
        return BENCHMARKS.load(name)(**settings)
    except TypeError as error:
        raise UserError(f"benchmark {name!r}: {error}") from error


def benchmark_of(settings: Mapping[str, Any]) -> Any:
    """What a run's settings name: its benchmark, or the user's own rows as one."""
    if settings.get("benchmark"):
        return create_benchmark(settings["benchmark"])
    if not settings.get("forget"):
        raise UserError("nothing to forget: give 'forget' (and 'retain'), or 'benchmark'")
    template = settings.get("template") or "auto"
    return create_benchmark("rows", forget=settings["forget"], retain=settings.get("retain"), template=template)
