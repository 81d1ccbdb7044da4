"""Ideas to beat the hybrid: what each rests on, written before it was run, and what came of it.

An idea wins where, at no more passes than the hybrid and matched to the same forgetting and utility, its harmonic mean
of R and Q is above the hybrid's: by 0.02 at least, the 95 % interval of the difference over seeds above zero, and the
held-back attacks on the same side.

R alone is no safe measure: a run that forgot less deeply has less to regain, and a larger R (AdamW's two rates in the
tables above show it). What relearning on half of the people leaves of the other half goes the other way, so that both
stand here, and the latter also against AdamW at a rate that forgets as deeply (the control). With Muon only matrices
are trained; on biographies the embeddings and norms stay, and what that does by itself is shown by Muon alone and by
AdamW and the hybrid over the matrices alone, in NPO's tables.

**Recommended** is an idea that wins on biographies and is confirmed on a real model: the hybrid with Muon in its
first-order phase (`recipes/recommended/`; faithfulness: ours). It does not win by this rule under RMU, where it forgets
more deeply; under all objectives it keeps more of what the attacker was not given. **Most of it is Muon**: alone, for
the hybrid's passes, Muon does as well under NPO and GradDiff and keeps more of what the model should know; on capitals
too, where the held-back relearner does not confirm it. Under RMU alone the hybrid with it keeps clearly more than Muon
without it, and less utility. Who wants one optimizer takes Muon; the table of the parts has the figures. On TOFU the
hybrid with Muon forgot more deeply than the hybrid, kept more of what it should know and, under relearning on one of
the two authors, more of the other; by the harmonic mean it is not settled. The passes are the hybrid's, but Muon's
own work on SmolLM2's 45 matrices of the capitals' runs makes 24 steps take 1.5 times as long on one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from letgo.evidence.claims import HALF, judge, unmatched
from letgo.evidence.records import Group, Record, joined
from letgo.evidence.statistics import Estimate, paired
from letgo.evidence.subjects import title_of
from letgo.evidence.text import mean, paragraph, rate, table
from letgo.report.numbers import MISSING, number

HYBRID = "FOZO"
NOT_RUN = "was not run"


@dataclass(frozen=True)
class Idea:
    """`name` is that of its group in the result files."""

    name: str
    hypothesis: str


IDEAS: tuple[Idea, ...] = (
    Idea(
        "FOZO (fo=sign_adam)",
        "A sign step moves every weight alike. Forgetting that is spread over all weights has no few large changes "
        "that a relearner's first steps could take back, so signs in the hybrid's first-order phase keep more.",
    ),
    Idea(
        "FOZO (zo=zo_muon, zo_steps=5, zo_lr=0.03, num_directions=4)",
        "One direction in 0.8 million dimensions sees a millionth of the gradient: AdaZO's phase is nearly a random "
        "walk. Estimates in a subspace of rank 64, orthogonalised, go further for the same passes, so that the "
        "smoothing that the phase is there for takes place.",
    ),
    Idea(
        "SAM (on=forget, rho=0.2)",
        "A relearner first goes up the forget objective. Descending at the worst point within the reach of its first "
        "steps, on the forget term alone, prepares for just that; the ladder's SAM looks less far, and at both terms.",
    ),
    Idea(
        "SAM (on=forget, rho=1.0)",
        "The same with the radius nearer to what relearning was seen to move (about 4, spread over all weights).",
    ),
    Idea(
        "FOZO (fo=muon)",
        "What Adam changes for a few facts is of low rank, and so is its undoing. An orthogonalised change is of full "
        "rank in every matrix, which Adam's steps along a few directions undo less of.",
    ),
    Idea(
        "Muon (steps=40)",
        "If it is Muon's steps that keep, and not the hybrid's turns of zeroth order, then Muon alone keeps as much "
        "for the hybrid's passes: 40 steps where the hybrid takes 48. Stated after Muon alone had kept more in 48.",
    ),
    Idea("Muon (steps=20)", "The same on capitals, where the hybrid takes 24."),
)


def against(group: Group, hybrid: Group, measure: str) -> Estimate | None:
    return paired(group.values(measure), hybrid.values(measure))


def verdict(group: Group | None, record: Record, hybrid: Group | None, name: str = "") -> str:
    """wins, does not win, not settled; or why it can't be said."""
    if group is None:
        return "did not reach the target within the bound" if name in record.missed else NOT_RUN
    if hybrid is None:
        return "the hybrid was not run under this objective"
    if reason := unmatched(group, record):
        return f"not matched: {reason}"
    if reason := unmatched(hybrid, record):
        return f"the hybrid is not matched: {reason}"
    if group.forward_equivalents > hybrid.forward_equivalents * 1.001:
        return "takes more passes than the hybrid"
    found = against(group, hybrid, "harmonic_mean")
    if found is None:
        return "no seed in common with the hybrid"
    said = judge(found)
    if said == "does not hold":
        return "does not win"
    if said == "not settled":
        return "not settled"
    held_back = [against(group, hybrid, f"kept:{label}") for label in record.held_back]
    confirmed = all(one is not None and one.mean > 0 for one in held_back)
    return "wins" if confirmed else "wins, but the held-back attacks don't confirm it"


def tried(records: Sequence[Record], found: Mapping[str, Record]) -> dict[str, list[Group]]:
    """By ladder the ideas that were run beside it, all seeds of each together: from the ideas' files, and what the
    ladder itself has beside its grades."""
    by: dict[str, list[Record]] = {}
    for record in records:
        if record.kind == "ideas":
            by.setdefault(record.key, []).append(record)
    for objective, ladder in found.items():
        if groups := [group for group in ladder.groups if not group.plain and not group.control]:
            by.setdefault(objective, []).append(ladder.model_copy(update={"groups": groups, "supersedes": False}))
    return {key: joined(several).groups for key, several in by.items() if key in found}


def section(ran: Mapping[str, Sequence[Group]], found: Mapping[str, Record]) -> list[str]:
    """The page's part on the ideas, which were `tried`."""
    parts = ["## Beating the hybrid", paragraph((__doc__ or "").partition("\n\n")[2])]
    numbered = "\n".join(f"{place}. **{idea.name}**: {idea.hypothesis}" for place, idea in enumerate(IDEAS, start=1))
    parts.append(numbered)
    if not ran:
        return [*parts, "None of them has been run."]
    parts.append(_overview(ran, found))
    parts += _parts_of_muon(ran, found)
    parts += [_table(key, groups, found[key]) for key, groups in ran.items()]
    return parts


def _overview(tried: Mapping[str, Sequence[Group]], found: Mapping[str, Record]) -> str:
    """Each idea's verdict on every ladder that has it."""
    rows = []
    for name in _names([group for groups in tried.values() for group in groups if not group.superseded]):
        said = []
        for key, groups in tried.items():
            group = next((one for one in groups if one.name == name), None)
            said.append(verdict(group, found[key], found[key].group(HYBRID), name))
        if set(said) != {NOT_RUN}:
            rows.append([name, *said])
    return table(["idea", *(title_of(key) for key in tried)], rows)


def _parts_of_muon(tried: Mapping[str, Sequence[Group]], found: Mapping[str, Record]) -> list[str]:
    """What the recommended recipe is made of, each alone: the hybrid, Muon, and both."""
    rows = []
    for key, groups in tried.items():
        ladder = found[key]
        alone = [group for group in [*groups, *ladder.groups] if group.optimizer == "muon" and not group.superseded]
        both = next((group for group in groups if group.name == "FOZO (fo=muon)"), None)
        if both is None or not alone:
            continue
        several = {group.name: group for group in (ladder.group(HYBRID), both, *alone) if group is not None}
        for name, group in several.items():
            measures = ("after:forget_probability", "after:retain_probability", "harmonic_mean", ladder.measure(HALF))
            values = [mean(group.estimate(measure)) for measure in measures]
            state = unmatched(group, ladder) or "matched"
            rows.append([title_of(key), name, f"{group.forward_equivalents:g}", *values, str(len(group.cells)), state])
    if not rows:
        return []
    text = "What the recommended recipe is made of, each part alone:"
    header = ["objective", "", "passes", "forget probability", "retain probability", "harmonic mean"]
    return [f"{text}\n\n{table([*header, 'kept, relearn half', 'seeds', ''], rows)}"]


def _names(groups: Sequence[Group]) -> list[str]:
    """The ideas' own names first."""
    return list(dict.fromkeys([*(idea.name for idea in IDEAS), *(group.name for group in groups)]))


def _both(group: Group, hybrid: Group, metric: str) -> str:
    """The means of both over the seeds that both have."""
    first, second = group.values(f"after:{metric}"), hybrid.values(f"after:{metric}")
    shared = first.keys() & second.keys()
    means = [number(fmean(values[seed] for seed in shared)) if shared else MISSING for values in (first, second)]
    return " / ".join(means)


def _table(objective: str, groups: Sequence[Group], ladder: Record) -> str:
    hybrid = ladder.group(HYBRID)
    control = ladder.control
    rows, absent = [], []
    for name in _names(groups):
        group = next((one for one in groups if one.name == name), None)
        said = verdict(group, ladder, hybrid, name)
        if said == NOT_RUN:
            absent.append(name)
            continue
        if group is None or hybrid is None:
            rows.append([name, *[MISSING] * 9, said])
            continue
        rows.append(
            [
                name,
                rate(group.learning_rate),
                f"{group.forward_equivalents:g}",
                _both(group, hybrid, "forget_probability"),
                _both(group, hybrid, "retain_probability"),
                mean(against(group, hybrid, "harmonic_mean")),
                mean(against(group, hybrid, ladder.measure(HALF))),
                mean(against(group, control, ladder.measure(HALF)) if control else None),
                "; ".join(mean(against(group, hybrid, f"kept:{label}")) for label in ladder.held_back) or MISSING,
                ", ".join(map(str, sorted(group.values("R")))) or MISSING,
                said,
            ]
        )
    header = [
        "idea",
        "rate",
        "passes",
        "forget probability",
        "retain probability",
        "harmonic mean",
        "kept, relearn half",
        "the same, less the control's",
        "kept, held back",
        "seeds",
        "",
    ]
    told = f"; the control is {control.name}" if control else ""
    passes = f" ({hybrid.forward_equivalents:g} passes)" if hybrid else ""
    text = (
        f"Under {title_of(objective)}, each less the hybrid's{passes}, paired over seeds, with 95 % intervals; the two "
        f"probabilities are the idea's and, over the same seeds, the hybrid's{told}:"
    )
    left = f"\n\nNot run there: {'; '.join(absent)}." if absent else ""
    return f"{paragraph(text)}\n\n{table(header, rows)}{left}"
