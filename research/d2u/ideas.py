"""Ideas to beat the hybrid: what each rests on, and what came of it. `template.md` says when an idea wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from letgo import number
from research.d2u.claims import HALF, judge, unmatched
from research.d2u.experiments import title_of
from research.d2u.markdown import MISSING, mean, paragraphs, rate, table
from research.d2u.records import Record, Setting
from research.d2u.statistics import Estimate, paired

HYBRID = "FOZO"
NOT_RUN = "was not run"


@dataclass(frozen=True)
class Idea:
    """`name` is that of its setting in the result files."""

    name: str
    hypothesis: str


IDEAS: tuple[Idea, ...] = (
    Idea(
        "FOZO (fo=sign_adam)",
        "A sign step moves every weight by the same amount. Forgetting that is spread over all weights has no few "
        "large changes that the first steps of relearning could take back. So signs in the hybrid's first-order "
        "phase keep more.",
    ),
    Idea(
        "FOZO (zo=zo_muon, zo_steps=5, zo_lr=0.03, num_directions=4)",
        "One direction in 0.8 million dimensions sees a millionth of the gradient, so AdaZO's phase is nearly a "
        "random walk. Orthogonalised estimates in a subspace of rank 64 go further for the same passes, so that the "
        "phase does smooth, as it should.",
    ),
    Idea(
        "SAM (on=forget, rho=0.2)",
        "Relearning first climbs the forget objective. Descending at the worst point within reach of its first "
        "steps, on the forget term alone, prepares for just that. The plain SAM looks less far, and at both terms.",
    ),
    Idea(
        "SAM (on=forget, rho=1.0)",
        "The same with a radius nearer to what relearning was seen to move (about 4, spread over all weights).",
    ),
    Idea(
        "FOZO (fo=muon)",
        "What Adam changes for a few facts is of low rank, and so is what undoes it. An orthogonalised change is of "
        "full rank in every matrix; Adam's steps along a few directions undo less of it.",
    ),
    Idea(
        "Muon (steps=40)",
        "If Muon's steps keep the forgetting, and not the hybrid's turns of zeroth order, then Muon alone keeps as "
        "much for the hybrid's passes: 40 steps, where the hybrid takes 48. This was stated after Muon alone had "
        "kept more in 48 steps.",
    ),
    Idea("Muon (steps=20)", "The same on capitals, where the hybrid takes 24 steps."),
)


def verdict(record: Record, label: str) -> str:
    """wins, does not win, not settled; or why neither can be said."""
    setting, hybrid = record.setting(label), record.setting(HYBRID)
    if setting is None:
        return "did not reach the target within the bound" if record.missed(label) else NOT_RUN
    if hybrid is None:
        return "the hybrid was not run under this objective"
    if reason := unmatched(setting, record):
        return f"not matched: {reason}"
    if reason := unmatched(hybrid, record):
        return f"the hybrid is not matched: {reason}"
    if setting.forward_equivalents > hybrid.forward_equivalents * 1.001:
        return "takes more passes than the hybrid"
    difference = _against(setting, hybrid, "harmonic_mean")
    if difference is None:
        return "no seed in common with the hybrid"
    judged = judge(difference)
    if judged != "holds":
        return "does not win" if judged == "does not hold" else judged
    held_back = [_against(setting, hybrid, f"kept:{attack}") for attack in record.held_back]
    confirmed = all(estimate is not None and estimate.mean > 0 for estimate in held_back)
    return "wins" if confirmed else "wins, but the held-back attacks don't confirm it"


def hypotheses() -> str:
    return "\n".join(f"{index}. **{idea.name}**: {idea.hypothesis}" for index, idea in enumerate(IDEAS, start=1))


def outcomes(records: Sequence[Record]) -> str:
    """Each idea's verdict in every experiment, the parts of the recommended recipe, and a table for each experiment."""
    tried = [record for record in records if record.ideas]
    if not tried:
        return "None of them has been run."
    return "\n\n".join([_overview(tried), *_parts_of_the_recipe(tried), *(_table(record) for record in tried)])


def _overview(records: Sequence[Record]) -> str:
    labels = _labels([setting for record in records for setting in record.ideas if not setting.superseded])
    rows = [[label, *(verdict(record, label) for record in records)] for label in labels]
    shown = [row for row in rows if set(row[1:]) != {NOT_RUN}]
    return table(["idea", *(title_of(record.name) for record in records)], shown)


def _parts_of_the_recipe(records: Sequence[Record]) -> list[str]:
    rows = []
    measures = ("after:forget_probability", "after:retain_probability", "harmonic_mean", HALF)
    for record in records:
        muon = [
            setting.label for setting in record.settings if setting.name.startswith("Muon") and not setting.superseded
        ]
        if record.setting("FOZO (fo=muon)") is None or not muon:
            continue
        for label in (HYBRID, "FOZO (fo=muon)", *muon):
            setting = record.setting(label)
            if setting is None:
                continue
            values = [mean(setting.estimate(record.measure(measure))) for measure in measures]
            state = unmatched(setting, record) or "matched"
            passes = f"{setting.forward_equivalents:g}"
            rows.append([title_of(record.name), label, passes, *values, str(len(setting.runs)), state])
    header = ["objective", "", "passes", "forget probability", "retain probability", "harmonic mean"]
    header += ["kept, relearn half", "seeds", ""]
    return ["The parts of the recommended recipe, each alone:", table(header, rows)] if rows else []


def _table(record: Record) -> str:
    hybrid, control = record.setting(HYBRID), record.control
    half = record.measure(HALF)
    rows, absent = [], []
    for label in _labels(record.ideas):
        judged = verdict(record, label)
        setting = record.setting(label)
        if judged == NOT_RUN:
            absent.append(label)
        elif setting is None or hybrid is None:
            rows.append([label, *[MISSING] * 9, judged])
        else:
            held_back = [mean(_against(setting, hybrid, f"kept:{attack}")) for attack in record.held_back]
            rows.append(
                [
                    label,
                    rate(setting.learning_rate),
                    f"{setting.forward_equivalents:g}",
                    _both(setting, hybrid, "after:forget_probability"),
                    _both(setting, hybrid, "after:retain_probability"),
                    mean(_against(setting, hybrid, "harmonic_mean")),
                    mean(_against(setting, hybrid, half)),
                    mean(_against(setting, control, half) if control else None),
                    "; ".join(held_back) or MISSING,
                    ", ".join(map(str, sorted(setting.values("R")))) or MISSING,
                    judged,
                ]
            )
    header = ["idea", "rate", "passes", "forget probability", "retain probability", "harmonic mean"]
    header += ["kept, relearn half", "the same, less the control's", "kept, held back", "seeds", ""]
    passes = f" ({hybrid.forward_equivalents:g} passes)" if hybrid else ""
    named = f" The control is {control.label}." if control else ""
    text = (
        f"{title_of(record.name)}: each idea's figure less the hybrid's{passes}, paired over seeds, with 95 % "
        f"intervals. The two probabilities are those of the idea and, over the same seeds, of the hybrid.{named}"
    )
    left_out = [f"Not run here: {'; '.join(absent)}."] if absent else []
    return "\n\n".join([paragraphs(text), table(header, rows), *left_out])


def _labels(settings: Sequence[Setting]) -> list[str]:
    """The ideas' own names first."""
    return list(dict.fromkeys([*(idea.name for idea in IDEAS), *(setting.label for setting in settings)]))


def _against(setting: Setting, other: Setting, measure: str) -> Estimate | None:
    return paired(setting.values(measure), other.values(measure))


def _both(setting: Setting, hybrid: Setting, measure: str) -> str:
    """The means of both over the seeds that both have."""
    first, second = setting.values(measure), hybrid.values(measure)
    shared = first.keys() & second.keys()
    if not shared:
        return f"{MISSING} / {MISSING}"
    return " / ".join(number(fmean(values[seed] for seed in shared)) for values in (first, second))
