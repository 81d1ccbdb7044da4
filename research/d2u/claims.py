"""The papers' claims, and how each is judged."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from letgo import number
from research.d2u.markdown import MISSING
from research.d2u.records import Record, Setting
from research.d2u.statistics import Estimate, estimate, paired

LEAST = 0.02
"""Differences of shares smaller than this count as none, however sure."""

UNEVEN = ((16, 8), (8, 16))
"""First- and zeroth-order steps of a turn; the plain hybrid on biographies takes 12 of each."""
TURNS = (6, 24)

Verdict = Literal["holds", "does not hold", "not settled", "not testable here"]
HALF, ALL = "kept:half", "R:everything"
"""Measures of the attacks that claims name; each testbed has its own (`Record.measure`)."""


@dataclass(frozen=True)
class Finding:
    """What one experiment says of a claim.

    `means`, `passes` and `seconds` are those of both settings: the mean over all seeds of each, the forward passes of a
    run (a backward pass counts as two), and the median time of unlearning.
    """

    experiment: str
    verdict: Verdict
    figure: str
    estimate: Estimate | None = None
    seeds: tuple[int, ...] = ()
    passes: str = ""
    seconds: str = ""
    means: str = ""


Test = Callable[[Record], Sequence[Finding]]


@dataclass(frozen=True)
class Claim:
    """One claim: its source, its words, and how it is tested; or why it cannot be tested here."""

    source: str
    text: str
    test: Test | None = None
    why_not: str = ""
    one_basin: tuple[str, str] | None = None
    """Two grades whose solutions are claimed to lie in one basin: judged by the analyses."""


def unmatched(setting: Setting, record: Record) -> str:
    """Why a setting takes no part in comparisons; empty if it does."""
    if setting.superseded:
        return "superseded by the next rate"
    finished = [run for run in setting.runs if run.status == "finished"]
    if not finished:
        return "no run finished"
    if broken := [run for run in setting.runs if run.broken]:
        return f"{len(broken)} of {len(setting.runs)} runs collapsed or failed"
    bed = record.bed
    relative = {key: most * record.retrained.get(key, 0.0) for key, most in bed.room_of_retrained.items()}
    for metric, limit in {**bed.room, **relative}.items():
        measured = estimate([run.after[metric] for run in finished if metric in run.after])
        if measured is None:
            return f"{metric} was not measured"
        lower = metric.startswith("retain_")
        bound = limit * record.before.get(metric, 1.0) if lower or metric == "general_perplexity" else limit
        # The files hold rounded numbers: a mean at the bound is within it.
        outside = measured.mean < bound - 1e-5 if lower else measured.mean > bound + 1e-5
        if outside:
            # As many digits as show the difference.
            digits = next(n for n in range(3, 7) if f"{measured.mean:.{n}f}" != f"{bound:.{n}f}")
            return f"{metric} {measured.mean:.{digits}f} is {'below' if lower else 'above'} {bound:.{digits}f}"
    return ""


def matched_grades(record: Record) -> list[Setting]:
    return [setting for setting in record.settings if setting.is_grade and not unmatched(setting, record)]


def judge(difference: Estimate) -> Verdict:
    """A difference that is claimed to be above zero."""
    if not difference.has_interval:
        return "not settled"
    if difference.low > 0 and difference.mean >= LEAST:
        return "holds"
    if difference.mean <= 0 or difference.high < LEAST:
        return "does not hold"
    return "not settled"


def more(better: str, worse: str, measure: str) -> Test:
    """`better` has more of a measure than `worse`."""
    return lambda record: [_difference(record, better, worse, measure)]


def more_than_control(better: str, measure: str) -> Test:
    """`better` has more of a measure than the control: AdamW at a rate that forgets as deeply."""

    def test(record: Record) -> Sequence[Finding]:
        if record.control is None:
            return [Finding(record.name, "not testable here", "no control was run")]
        return [_difference(record, better, record.control.label, measure)]

    return test


def alike(name: str, other: str, measure: str) -> Test:
    """Two settings differ by less than `LEAST`: the interval of their difference lies within it."""

    def test(record: Record) -> Sequence[Finding]:
        finding = _difference(record, name, other, measure)
        if finding.estimate is None or not finding.estimate.has_interval:
            return [finding]
        low, high = finding.estimate.low, finding.estimate.high
        apart = low > LEAST or high < -LEAST
        verdict: Verdict = "holds" if low > -LEAST and high < LEAST else "does not hold" if apart else "not settled"
        return [replace(finding, verdict=verdict)]

    return test


def highest(name: str, measure: str, *, among: Sequence[str] = (), lowest: bool = False) -> Test:
    """A grade has the most (or least) of a measure: it is compared with the nearest of the others."""

    def test(record: Record) -> Sequence[Finding]:
        others = [
            grade for grade in matched_grades(record) if grade.name != name and (not among or grade.name in among)
        ]
        means = {grade.name: grade.estimate(record.measure(measure)) for grade in others}
        known = {label: estimate.mean for label, estimate in means.items() if estimate is not None}
        if not known:
            missing = _why_not(record, name) or "no other grade was measured"
            return [Finding(record.name, "not testable here", missing)]
        nearest = min(known, key=lambda label: known[label]) if lowest else max(known, key=lambda label: known[label])
        better, worse = (nearest, name) if lowest else (name, nearest)
        return [_difference(record, better, worse, measure)]

    return test


def no_dearer(name: str, other: str, room: float) -> Test:
    """A run of one grade takes at most (1 + room) times the other's passes."""

    def test(record: Record) -> Sequence[Finding]:
        first, second = record.setting(name), record.setting(other)
        if first is None or second is None:
            return [Finding(record.name, "not testable here", _why_not(record, name if first is None else other))]
        ratio = first.forward_equivalents / second.forward_equivalents
        verdict: Verdict = "holds" if ratio <= 1 + room else "does not hold"
        figure = f"{name} takes {ratio:.2f} times the passes of {other}"
        passes, seconds = _cost(first, second)
        return [Finding(record.name, verdict, figure, passes=passes, seconds=seconds)]

    return test


def each(*tests: Test) -> Test:
    return lambda record: [finding for test in tests for finding in test(record)]


def summary(findings: Sequence[Finding]) -> str:
    """One verdict over experiments and comparisons: how many of those that could be tested hold."""
    tested = [finding.verdict for finding in findings if finding.verdict != "not testable here"]
    if not tested:
        return "not testable here"
    if len(set(tested)) == 1:
        return tested[0]
    counts = {
        "holds in": tested.count("holds"),
        "does not in": tested.count("does not hold"),
        "not settled in": tested.count("not settled"),
    }
    parts = [f"{text} {count}" for text, count in counts.items() if count]
    return f"{', '.join(parts)} of {len(tested)} comparisons"


def _difference(record: Record, better: str, worse: str, measure: str) -> Finding:
    first, second = record.setting(better), record.setting(worse)
    reason = _why_not(record, better) or _why_not(record, worse)
    if first is None or second is None or reason:
        return Finding(record.name, "not testable here", reason)
    values, others = (setting.values(record.measure(measure)) for setting in (first, second))
    difference = paired(values, others)
    if difference is None:
        return Finding(record.name, "not testable here", f"{better} and {worse} share no measured seed")
    return Finding(
        record.name,
        judge(difference),
        f"{better} − {worse}",
        difference,
        tuple(sorted(values.keys() & others.keys())),
        *_cost(first, second),
        means=f"{_mean(values)} against {_mean(others)}",
    )


def _why_not(record: Record, label: str) -> str:
    """Why a setting cannot be compared; empty if it can."""
    setting = record.setting(label)
    if setting is None:
        return f"{label} did not reach the target within the bound" if record.missed(label) else f"{label} was not run"
    reason = unmatched(setting, record)
    return f"{label}: {reason}" if reason else ""


def _mean(values: Mapping[int, float]) -> str:
    return f"{statistics.fmean(values.values()):.3g} (n = {len(values)})"


def _cost(*settings: Setting) -> tuple[str, str]:
    passes = " against ".join(f"{setting.forward_equivalents:g}" for setting in settings)
    return passes, " against ".join(number(setting.seconds) if setting.seconds else MISSING for setting in settings)


_D2U = "D2U (arXiv 2510.00761)"
_SOUL = "SOUL (arXiv 2404.18239)"
_HARMONIC = "harmonic_mean"
_UTILITY = "after:retain_probability"
_FIRST_ORDER = ("AdamW", "Sophia", "Muon", "SignAdam", "SignSGD", "8-bit", "4-bit", "SAM", "RS")
_ROUNDING = tuple((name, "AdamW") for name in ("SignAdam", "SignSGD", "RS"))

CLAIMS: tuple[Claim, ...] = (
    Claim(
        _D2U,
        "The lower the grade of a first-order optimizer, the more robust its forgetting: coarser directions are better "
        "than finer ones (harmonic mean of R and Q).",
        each(*(more(*pair, _HARMONIC) for pair in (("SignAdam", "4-bit"), ("4-bit", "8-bit"), ("8-bit", "AdamW")))),
    ),
    Claim(
        _D2U,
        "After 4-bit quantization signAdam, signSGD and randomized smoothing keep more than Adam.",
        each(*(more(*pair, "kept:quantize:bits=4") for pair in _ROUNDING)),
    ),
    Claim(
        "ours",
        "The same at 3 bits, where rounding brings more back.",
        each(*(more(*pair, "kept:quantize:bits=3") for pair in _ROUNDING)),
    ),
    Claim(
        _D2U,
        "Sophia, of the highest grade, is the least robust (harmonic mean).",
        highest("Sophia", _HARMONIC, lowest=True),
    ),
    Claim(
        _D2U,
        "After 100 relearning steps (on capitals 6) on all of the forget set, randomized smoothing is the best "
        "first-order downgrade.",
        highest("RS", ALL, among=("AdamW", "SignAdam", "SignSGD", "8-bit", "4-bit")),
    ),
    Claim(
        _D2U,
        "After 100 relearning steps (on capitals 6) the hybrid is clearly ahead of Adam.",
        more("FOZO", "AdamW", ALL),
    ),
    Claim(
        "ours",
        "After the hybrid, relearning on half of the people (countries, authors) brings back less of the other half "
        "than after Adam.",
        more("FOZO", "AdamW", HALF),
    ),
    Claim(
        "ours",
        "The optimizer decides, not the depth of forgetting: under relearning on half, the hybrid and Sophia keep more "
        "than Adam at a rate that forgets as much as they do.",
        each(*(more_than_control(name, HALF) for name in ("FOZO", "Sophia"))),
    ),
    Claim(_D2U, "The hybrid is the most robust of all grades (harmonic mean).", highest("FOZO", _HARMONIC)),
    Claim(_D2U, "The hybrid is ahead of SAM (harmonic mean).", more("FOZO", "SAM", _HARMONIC)),
    Claim(
        _D2U,
        "At the same forgetting the hybrid keeps more utility than Adam (retain probability).",
        more("FOZO", "AdamW", _UTILITY),
    ),
    Claim(
        _D2U,
        "The hybrid costs hardly more than Adam: for as many steps, at most a tenth more passes.",
        no_dearer("FOZO", "AdamW", 0.1),
    ),
    Claim(
        _D2U,
        "Zeroth-order unlearning leaves the least residue under attack.",
        each(*(highest(name, _HARMONIC, among=_FIRST_ORDER) for name in ("AdaZO", "ZO-SGD", "ZO-Muon"))),
    ),
    Claim(
        _SOUL,
        "At the same forgetting, second-order unlearning (Sophia) keeps more utility than first-order (retain "
        "probability).",
        more("Sophia", "AdamW", _UTILITY),
    ),
    Claim(
        "ours",
        "The hybrid and Sophia keep more utility than Adam at a rate that forgets as much as they do.",
        each(*(more_than_control(name, _UTILITY) for name in ("FOZO", "Sophia"))),
    ),
    Claim(
        _D2U,
        "Sign methods end in Adam's basin: there is no barrier on the straight line between them.",
        one_basin=("AdamW", "SignAdam"),
    ),
    Claim(
        _D2U,
        "Zeroth-order solutions are not connected to Adam's.",
        why_not="no zeroth-order grade reached the target within the bound",
    ),
    Claim(
        _D2U,
        "The hybrid is best if it divides its steps evenly between first and zeroth order (harmonic mean, against "
        "twice as many of either).",
        each(*(more("FOZO", f"FOZO (fo_steps={fo}, zo_steps={zo})", _HARMONIC) for fo, zo in UNEVEN)),
    ),
    Claim(
        _D2U,
        "The number of steps in a turn of the hybrid hardly matters (harmonic mean, half and twice as many).",
        each(*(alike("FOZO", f"FOZO (fo_steps={steps}, zo_steps={steps})", _HARMONIC) for steps in TURNS)),
    ),
    Claim(
        _D2U,
        "On WMDP, zeroth order is worst before relearning and may beat the hybrid after many epochs.",
        why_not="needs a model of billions of parameters and an accelerator",
    ),
    Claim(
        f"{_D2U}; {_SOUL}",
        "The published TOFU and MUSE figures.",
        why_not="need a fine-tuned model of billions of parameters and an accelerator",
    ),
)
