"""The papers' claims, each with how it is judged. Written before the ladder was run.

A claim is tested under each objective apart, on differences paired over seeds. It **holds** where the mean lies at
least 0.02 on the side that was claimed and its 95 % interval keeps off zero; it **does not hold** where the interval
lies below 0.02, or the mean on the wrong side of zero; it is **not settled** where the mean is on the claimed side and
the interval doesn't tell, or where there is one seed. That two are alike holds where the interval of their difference
lies within 0.02 of zero, and does not where it keeps outside. A grade that missed the target or the bound takes no
part: robust and useless is not robust.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from letgo.evidence.records import Group, Record
from letgo.evidence.statistics import Estimate, estimate, paired
from letgo.report.numbers import MISSING, number

LEAST = 0.02
"""Differences of shares smaller than this are none, however sure."""

UNEVEN = ((16, 8), (8, 16))
"""First- and zeroth-order steps of a turn, where the ladder's hybrid takes 12 of each."""
TURNS = (6, 24)

Verdict = Literal["holds", "does not hold", "not settled", "not testable here"]
HALF, ALL = "kept:half", "R:everything"
"""Measures of the attacks that claims name; each subject has its own (`subjects.Subject`)."""


@dataclass(frozen=True)
class Finding:
    """What one objective's ladder says of a claim."""

    objective: str
    verdict: Verdict
    figure: str
    estimate: Estimate | None = None
    seeds: tuple[int, ...] = ()
    passes: str = ""
    """Of a run of each, in forward passes, a backward pass counted as two."""
    seconds: str = ""
    """Of a run's unlearning of each, the median."""
    means: str = ""
    """Of each over all its seeds, also those that the other has not."""


Test = Callable[[Record], Sequence[Finding]]


@dataclass(frozen=True)
class Claim:
    """One claim: where it stands, what it says, and how it is tested (None: it can't be here, and why)."""

    key: str
    source: str
    says: str
    test: Test | None = None
    why_not: str = ""
    one_basin: tuple[str, str] | None = None
    """Grades whose solutions are claimed to lie in one basin: judged by the analyses."""


def unmatched(group: Group, record: Record) -> str:
    """Why a group takes no part in comparisons; empty where it does."""
    if group.reached is False:
        return "missed the target in tuning"
    if group.superseded:
        return "superseded by the next rate"
    finished = [cell for cell in group.cells if cell.status == "finished"]
    if not finished:
        return "no run finished"
    if broken := [cell for cell in group.cells if cell.broken]:
        return f"{len(broken)} of {len(group.cells)} runs collapsed or failed"
    before, subject = record.before, record.subject
    relative = {key: most * record.retrained.get(key, 0.0) for key, most in subject.room_of_retrained.items()}
    for metric, limit in {**subject.room, **relative}.items():
        found = estimate([cell.after[metric] for cell in finished if metric in cell.after])
        if found is None:
            return f"{metric} was not measured"
        lower = metric.startswith("retain_")
        bound = limit * before.get(metric, 1.0) if lower or metric == "general_perplexity" else limit
        # What is kept in the files is rounded: at the bound is within it.
        outside = found.mean < bound - 1e-5 if lower else found.mean > bound + 1e-5
        if outside:
            # Digits enough to tell them apart.
            digits = next(n for n in range(3, 7) if f"{found.mean:.{n}f}" != f"{bound:.{n}f}")
            return f"{metric} {found.mean:.{digits}f} is {'below' if lower else 'above'} {bound:.{digits}f}"
    return ""


def matched(record: Record) -> list[Group]:
    return [group for group in record.groups if group.plain and not unmatched(group, record)]


def judge(found: Estimate, *, least: float = LEAST) -> Verdict:
    """A difference that is claimed to be above zero."""
    if not found.known:
        return "not settled"
    if found.low > 0 and found.mean >= least:
        return "holds"
    if found.mean <= 0 or found.high < least:
        return "does not hold"
    return "not settled"


def more(better: str, worse: str, measure: str, *, least: float = LEAST) -> Test:
    """`better` has more of a measure than `worse`."""

    def test(record: Record) -> Sequence[Finding]:
        return [_difference(record, better, worse, measure, least)]

    return test


def alike(name: str, other: str, measure: str, *, least: float = LEAST) -> Test:
    """Two grades differ by less than `least`: the interval of the difference keeps within it."""

    def test(record: Record) -> Sequence[Finding]:
        found = _difference(record, name, other, measure, least)
        if found.estimate is None or not found.estimate.known:
            return [found]
        low, high = found.estimate.low, found.estimate.high
        apart = low > least or high < -least
        verdict: Verdict = "holds" if -least < low and high < least else "does not hold" if apart else "not settled"
        return [replace(found, verdict=verdict)]

    return test


def highest(name: str, measure: str, *, among: Sequence[str] = (), lowest: bool = False) -> Test:
    """A grade has the most (or least) of a measure: it differs from the nearest other one."""

    def test(record: Record) -> Sequence[Finding]:
        others = [g.name for g in matched(record) if g.name != name and (not among or g.name in among)]
        means = {one: estimate(list(_values(record, one, measure).values())) for one in others}
        known = {one: found.mean for one, found in means.items() if found is not None}
        if not known:
            missing = _why(record, name) or "no other grade was measured"
            return [Finding(record.key, "not testable here", missing)]
        nearest = min(known, key=lambda one: known[one]) if lowest else max(known, key=lambda one: known[one])
        pair = (nearest, name) if lowest else (name, nearest)
        return [_difference(record, *pair, measure, LEAST)]

    return test


def _difference(record: Record, better: str, worse: str, measure: str, least: float) -> Finding:
    for name in (better, worse):
        if reason := _why(record, name):
            return Finding(record.key, "not testable here", reason)
    first, second = _values(record, better, measure), _values(record, worse, measure)
    found = paired(first, second)
    if found is None:
        return Finding(record.key, "not testable here", f"{better} and {worse} share no measured seed")
    seeds = tuple(sorted(first.keys() & second.keys()))
    figure = f"{better} − {worse}"
    means = f"{_mean(first)} against {_mean(second)}"
    return Finding(
        record.key, judge(found, least=least), figure, found, seeds, *_cost(record, better, worse), means=means
    )


def _mean(values: Mapping[int, float]) -> str:
    return f"{statistics.fmean(values.values()):.3g} (n = {len(values)})"


def _cost(record: Record, *names: str) -> tuple[str, str]:
    """Passes and seconds of each."""
    groups = [group for group in map(record.group, names) if group is not None]
    passes = " against ".join(f"{group.forward_equivalents:g}" for group in groups)
    return passes, " against ".join(number(group.seconds) if group.seconds else MISSING for group in groups)


def more_than_control(better: str, measure: str) -> Test:
    """`better` has more of a measure than the ladder's control: Adam at a rate that forgets as deeply."""

    def test(record: Record) -> Sequence[Finding]:
        if record.control is None:
            return [Finding(record.key, "not testable here", "no control was run")]
        return [_difference(record, better, record.control.name, measure, LEAST)]

    return test


def no_dearer(name: str, other: str, room: float) -> Test:
    """A run of one grade takes at most (1 + room) times the other's passes."""

    def test(record: Record) -> Sequence[Finding]:
        first, second = record.group(name), record.group(other)
        if first is None or second is None:
            missing = name if first is None else other
            return [Finding(record.key, "not testable here", _why(record, missing))]
        ratio = first.forward_equivalents / second.forward_equivalents
        found: Verdict = "holds" if ratio <= 1 + room else "does not hold"
        figure = f"{name} takes {ratio:.2f} times the passes of {other}"
        passes, seconds = _cost(record, name, other)
        return [Finding(record.key, found, figure, passes=passes, seconds=seconds)]

    return test


def _why(record: Record, name: str) -> str:
    group = record.group(name)
    if group is None:
        return f"{name} did not reach the target within the bound" if name in record.missed else f"{name} was not run"
    reason = unmatched(group, record)
    return f"{name}: {reason}" if reason else ""


def _values(record: Record, name: str, measure: str) -> dict[int, float]:
    group = record.group(name)
    return group.values(record.measure(measure)) if group else {}


def _downgrades(record: Record) -> Sequence[Finding]:
    """A coarser direction keeps more: 1 bit above 4, 4 above 8, 8 above none, in the harmonic mean."""
    pairs = (("SignAdam", "4-bit"), ("4-bit", "8-bit"), ("8-bit", "AdamW"))
    return [_difference(record, coarse, fine, "harmonic_mean", LEAST) for coarse, fine in pairs]


def _several(*tests: Test) -> Test:
    def test(record: Record) -> Sequence[Finding]:
        return [finding for one in tests for finding in one(record)]

    return test


_D2U = "D2U (arXiv 2510.00761)"
_SOUL = "SOUL (arXiv 2404.18239)"
_Q4 = "kept:quantize:bits=4"
_FO = ("AdamW", "Sophia", "Muon", "SignAdam", "SignSGD", "8-bit", "4-bit", "SAM", "RS")

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "grades",
        _D2U,
        "The lower the grade of a first-order optimizer, the more robust its forgetting: coarser directions are better "
        "than finer ones (harmonic mean of R and Q).",
        _downgrades,
    ),
    Claim(
        "quantization",
        _D2U,
        "After 4-bit quantization signAdam, signSGD and randomized smoothing keep more than Adam.",
        _several(*(more(name, "AdamW", _Q4) for name in ("SignAdam", "SignSGD", "RS"))),
    ),
    Claim(
        "quantization-coarse",
        "ours",
        "The same at 3 bits, where rounding brings more back.",
        _several(*(more(name, "AdamW", "kept:quantize:bits=3") for name in ("SignAdam", "SignSGD", "RS"))),
    ),
    Claim(
        "sophia",
        _D2U,
        "Sophia, of the highest grade, is the least robust (harmonic mean).",
        highest("Sophia", "harmonic_mean", lowest=True),
    ),
    Claim(
        "relearn-downgrades",
        _D2U,
        "After 100 relearning steps (on capitals 6) on all of the forget set, randomized smoothing is the best "
        "first-order downgrade.",
        highest("RS", ALL, among=("AdamW", "SignAdam", "SignSGD", "8-bit", "4-bit")),
    ),
    Claim(
        "relearn-hybrid",
        _D2U,
        "After 100 relearning steps (on capitals 6) the hybrid is clearly ahead of Adam.",
        more("FOZO", "AdamW", ALL),
    ),
    Claim(
        "relearn-others",
        "ours",
        "Relearning on half of the people (countries, authors) brings less of the other half back after the hybrid "
        "than after Adam.",
        more("FOZO", "AdamW", HALF),
    ),
    Claim(
        "depth",
        "ours",
        "It is the optimizer and not the depth of forgetting: the hybrid and Sophia keep more under relearning on half "
        "than Adam at a rate that forgets as much as they do.",
        _several(*(more_than_control(name, HALF) for name in ("FOZO", "Sophia"))),
    ),
    Claim(
        "hybrid-best",
        _D2U,
        "The hybrid is the most robust of all grades (harmonic mean).",
        highest("FOZO", "harmonic_mean"),
    ),
    Claim(
        "hybrid-sam",
        _D2U,
        "The hybrid is ahead of SAM (harmonic mean).",
        more("FOZO", "SAM", "harmonic_mean"),
    ),
    Claim(
        "hybrid-utility",
        _D2U,
        "At the same forgetting the hybrid keeps more utility than Adam (retain probability).",
        more("FOZO", "AdamW", "after:retain_probability"),
    ),
    Claim(
        "hybrid-cost",
        _D2U,
        "The hybrid costs hardly more than Adam: at most a tenth, in passes for as many steps.",
        no_dearer("FOZO", "AdamW", 0.1),
    ),
    Claim(
        "zo-robust",
        _D2U,
        "Zeroth-order unlearning leaves the least residue under attack.",
        _several(*(highest(name, "harmonic_mean", among=_FO) for name in ("AdaZO", "ZO-SGD", "ZO-Muon"))),
    ),
    Claim(
        "soul-utility",
        _SOUL,
        "At the same forgetting, second-order unlearning (Sophia) keeps more utility than first-order (retain "
        "probability).",
        more("Sophia", "AdamW", "after:retain_probability"),
    ),
    Claim(
        "depth-utility",
        "ours",
        "The same for the hybrid and Sophia, against Adam at a rate that forgets as much as they do.",
        _several(*(more_than_control(name, "after:retain_probability") for name in ("FOZO", "Sophia"))),
    ),
    Claim(
        "basin",
        _D2U,
        "Sign methods end in Adam's basin: no barrier on the straight line between them.",
        one_basin=("AdamW", "SignAdam"),
    ),
    Claim(
        "basin-zo",
        _D2U,
        "Zeroth-order solutions are not connected to Adam's.",
        why_not="no zeroth-order grade reached the target within the bound",
    ),
    Claim(
        "schedule",
        _D2U,
        "An even split of the hybrid's steps between first and zeroth order is best (harmonic mean, against twice as "
        "many of either).",
        _several(*(more("FOZO", f"FOZO (fo_steps={fo}, zo_steps={zo})", "harmonic_mean") for fo, zo in UNEVEN)),
    ),
    Claim(
        "turns",
        _D2U,
        "The number of steps that the hybrid takes a turn hardly matters (harmonic mean, half and twice as many).",
        _several(*(alike("FOZO", f"FOZO (fo_steps={n}, zo_steps={n})", "harmonic_mean") for n in TURNS)),
    ),
    Claim(
        "wmdp",
        _D2U,
        "On WMDP, zeroth order is worst before relearning and may beat the hybrid after many epochs.",
        why_not="needs a model of billions of parameters and an accelerator",
    ),
    Claim(
        "tofu",
        f"{_D2U}; {_SOUL}",
        "The published TOFU and MUSE figures.",
        why_not="need a fine-tuned model of billions of parameters and an accelerator",
    ),
)


def summary(findings: Sequence[Finding]) -> str:
    """One verdict over objectives and comparisons: how many of those that could be tested hold."""
    tested = [finding for finding in findings if finding.verdict != "not testable here"]
    if not tested:
        return "not testable here"
    counts = {verdict: sum(f.verdict == verdict for f in tested) for verdict in ("holds", "does not hold")}
    if counts["holds"] == len(tested):
        return "holds"
    if counts["does not hold"] == len(tested):
        return "does not hold"
    left = len(tested) - sum(counts.values())
    if left == len(tested):
        return "not settled"
    told = [f"holds in {counts['holds']}", f"does not in {counts['does not hold']}", f"not settled in {left}"]
    return f"{', '.join(text for text in told if not text.endswith(' 0'))} of {len(tested)} comparisons"
