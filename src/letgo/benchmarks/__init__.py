"""What to forget, and how to measure whether it is forgotten: data and scores, a file for each benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any

from letgo.core.catalog import Catalog, Own, Record, parse_spec
from letgo.core.errors import LetgoError, UserError, first_line
from letgo.core.own import check_recorded
from letgo.metrics import headlines
from letgo.metrics.records import Headline


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord(Record):
    """`headlines` are the metrics by which forgetting, and what an attack leaves of it, are judged."""

    headlines: tuple[Headline, ...] = ()


_faithful = partial(BenchmarkRecord, faithfulness="faithful")
_ours = partial(BenchmarkRecord, source="letgo", faithfulness="ours")

BENCHMARKS: Catalog[BenchmarkRecord] = Catalog(
    "benchmark",
    [
        BenchmarkRecord(
            name="biographies",
            target="letgo.benchmarks.biographies.biographies:biographies",
            summary="facts about fictional people; shipped tiny model and its retrained counterpart; offline",
            source="letgo; rows shaped as TOFU's (arXiv 2401.06121), texts as MUSE's (arXiv 2407.06460)",
            faithfulness="ours",
            headlines=headlines("forget_accuracy", "forget_probability"),
        ),
        _ours(
            name="capitals",
            target="letgo.benchmarks.capitals:capitals",
            summary="capitals of 20 countries, which a pretrained model knows, against all other countries; offline",
            headlines=headlines("forget_accuracy", "forget_probability"),
        ),
        _ours(
            name="verbatim",
            target="letgo.benchmarks.verbatim:verbatim",
            summary="public-domain passages that SmolLM2 recites, word for word, beside some that nobody read; offline",
            headlines=headlines("forget_exact_match", "forget_verbmem"),
        ),
        _faithful(
            name="wmdp",
            target="letgo.benchmarks.wmdp:wmdp",
            summary="hazardous knowledge by multiple choice, against MMLU; corpora to unlearn it with",
            source="WMDP (arXiv 2403.03218), as lm-eval's tasks score it",
            note="engine=lm_eval needs the extra 'eval'; biology's forget corpus is gated",
            headlines=headlines("forget_accuracy"),
        ),
        _faithful(
            name="mmlu",
            target="letgo.benchmarks.wmdp:mmlu",
            summary="57 subjects by multiple choice, zero-shot; only scores a model",
            source="MMLU (arXiv 2009.03300), as lm-eval's tasks score it",
        ),
        BenchmarkRecord(
            name="copyright",
            target="letgo.benchmarks.copyright:copyright",
            summary="verbatim continuation of a text of yours, in instructions trained on and not trained on",
            source="SOUL (arXiv 2404.18239), copyright task",
            faithfulness="variant",
            note="instructions are letgo's own; continuations have a set length, where SOUL bounds prompt and answer",
            extra="eval",
            headlines=headlines("forget_rouge", "forget_probability"),
        ),
        BenchmarkRecord(
            name="detox",
            target="letgo.benchmarks.detox:detox",
            summary="unsafe answers to be unlearned; toxicity of the answers that are given",
            source="SOUL (arXiv 2404.18239), detoxification task",
            faithfulness="variant",
            note="the score is one label's (SOUL: the likeliest label's); long prompts are answered too; a part of C4",
            headlines=headlines("forget_toxicity"),
        ),
        BenchmarkRecord(
            name="lm_eval",
            target="letgo.benchmarks.lm_eval:lm_eval",
            summary="any tasks of lm-eval, by default SOUL's eight zero-shot ones; only scores a model",
            source="lm-evaluation-harness",
            faithfulness="library",
            extra="eval",
        ),
        _ours(
            name="rows",
            target="letgo.benchmarks.user_rows:user_rows",
            summary="your own forget and retain files, scored by probability and ROUGE",
            headlines=headlines("forget_probability"),
        ),
        _faithful(
            name="tofu",
            target="letgo.benchmarks.tofu.tofu:tofu",
            summary="fictitious authors that a model was fine-tuned on: forget quality against model utility",
            source="TOFU (arXiv 2401.06121); hub locuslab/TOFU",
            headlines=headlines("forget_probability", "forget_rouge"),
        ),
        _faithful(
            name="muse",
            target="letgo.benchmarks.muse.muse:muse",
            summary="news or books: verbatim and knowledge memorization, PrivLeak and utility, by request sizes",
            source="MUSE (arXiv 2407.06460); hub muse-bench/MUSE-News, muse-bench/MUSE-Books",
            headlines=headlines("forget_verbmem", "forget_knowmem"),
        ),
        BenchmarkRecord(
            name="rwku",
            target="letgo.benchmarks.rwku:rwku",
            summary="famous people, by blanks, questions and adversarial questions; their neighbours to keep",
            source="RWKU (arXiv 2406.10890); hub jinzhuoran/RWKU",
            faithfulness="variant",
            note="ROUGE-L stemmed, by another library; answers are not begun with 'Answer:'; without its sets "
            "for membership and utility",
            headlines=headlines("forget_rouge", "forget_probability"),
        ),
        BenchmarkRecord(
            name="knowundo",
            target="letgo.benchmarks.knowundo:knowundo",
            summary="what must be forgotten beside what must be kept: invented people, or books",
            source="KnowUnDo (arXiv 2407.01920); hub zjunlp/KnowUnDo",
            faithfulness="variant",
            note="scored by ROUGE-L recall, exact match and probability, where the paper has a score of its own making",
            headlines=headlines("forget_rouge", "forget_probability"),
        ),
        BenchmarkRecord(
            name="lume",
            target="letgo.benchmarks.lume:lume",
            summary="SemEval 2025 task 4: stories, invented people and documents, by completion and by question",
            source="LUME (arXiv 2502.15097); hub llmunlearningsemeval2025organization, gated",
            faithfulness="variant",
            note="after the task's description: its script was not at hand; without its membership set, MMLU and "
            "the aggregate",
            headlines=headlines("forget_rouge", "forget_exact_match"),
        ),
    ],
    Own("letgo.benchmarks", BenchmarkRecord, lambda make: {}),
)

_COMPLETED = "letgo.benchmarks.engine.base:completed"
OWN_ROWS = ("forget", "retain", "evaluate", "control")
"""A run's settings that name files of the user's own, each a setting of the benchmark `rows`."""


def create_benchmark(spec: str, *, metrics: Sequence[str] = (), **more: Any) -> Any:
    """The benchmark of a spec "NAME:key=value,…" (`letgo.benchmarks.engine.base.Benchmark`), with `more` settings;
    NAME may be the path of a function of one's own that makes a `Benchmark`.

    Args:
        metrics: metrics of one's own that are taken of each sample too, each "package.module.name:key=value,…".
    """
    name, settings = parse_spec(spec)
    settings = {**settings, **more}
    record = BENCHMARKS.record(name)
    BENCHMARKS.check_settings(name, settings)
    yours = record.faithfulness == "yours"
    try:
        made = BENCHMARKS.load(name)(**settings)
    except LetgoError:
        raise
    except Exception as error:
        if not yours and not isinstance(error, TypeError):
            raise
        raise UserError(f"benchmark {name!r}: {type(error).__name__}: {first_line(error)}") from error
    if not yours and not metrics:
        return made
    return resolve_name(_COMPLETED)(made, record, settings, metrics)


def benchmark_of(settings: Mapping[str, Any], *, recorded: bool = False) -> Any:
    """The benchmark that a run's settings name, or the user's own rows as one.

    Args:
        recorded: the settings are a record's: what is not letgo's own is then not imported.
    """
    metrics = settings.get("metrics") or ()
    if recorded:
        name = parse_spec(settings.get("benchmark") or "rows")[0]
        if name not in BENCHMARKS:
            check_recorded("benchmark", name)
        for spec in metrics:
            check_recorded("metric", parse_spec(spec)[0])
    if settings.get("benchmark"):
        return create_benchmark(settings["benchmark"], metrics=metrics)
    if not settings.get("forget"):
        raise UserError("nothing to forget: give 'forget' (and 'retain'), or 'benchmark'")
    own = {name: settings.get(name) for name in OWN_ROWS}
    return create_benchmark("rows", metrics=metrics, **own, template=settings.get("template") or "auto")
