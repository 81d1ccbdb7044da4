"""The page, from the result files alone: `template.md` with its tables filled in, and the drawings beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from letgo import UserError, number
from research.d2u import analyses, claims, ideas
from research.d2u.claims import CLAIMS, Claim, Finding, unmatched
from research.d2u.drawing import dots
from research.d2u.experiments import MOVED, OBJECTIVES, TESTBEDS, experiments, read_testbed, title_of
from research.d2u.markdown import MISSING, mean, paragraphs, rate, shares, table, words
from research.d2u.records import Record, Setting, read_record
from research.d2u.statistics import Estimate

TEMPLATE = Path(__file__).parent / "template.md"
_FINDING = ("experiment", "difference", "mean (95 % interval)", "seeds", "all seeds", "passes", "seconds", "verdict")


def write_page(results: Path, output: Path) -> None:
    """Write the page, and its drawings into a folder beside it that bears its name.

    Raises:
        UserError: there are no result files, or one of them is broken.
    """
    paths = [path for path in sorted(results.glob("*.json")) if not path.name.startswith("analysis-")]
    if not paths:
        raise UserError(f"{results} holds no result files; make them by sh research/d2u/run.sh")
    records = sorted(map(read_record, paths), key=lambda record: experiments().index(record.name))
    folder = output.parent / output.stem
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        for measure in _drawn(record):
            (folder / _file(record, measure)).write_text(_drawing(record, measure), encoding="utf-8")
    output.write_text(page_text(records, *analyses.read(results), folder.name), encoding="utf-8")


def page_text(
    records: Sequence[Record], connectivities: Sequence[Any], certificates: Sequence[Any], folder: str
) -> str:
    """The page's text; `folder` holds the drawings."""
    rows, details = _claims(records, connectivities)
    parts = {
        "room": _room([record.testbed for record in records]),
        "least": f"{claims.LEAST:g}",
        "claims": rows,
        "commands": "; ".join(f"{title_of(record.name)} `{_command(record)}`" for record in records),
        "findings": details,
        "experiments": "\n\n".join(_experiment(record, folder) for record in records),
        "tuning": _tuning(records),
        "analyses": analyses.section(connectivities, certificates),
        "hypotheses": ideas.hypotheses(),
        "ideas": ideas.outcomes(records),
        "not_run": _not_run(records),
        "ran": _ran(records),
        "few_seeds": _few_seeds(records),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for key, value in parts.items():
        text = text.replace(f"{{{key}}}", value)
    return paragraphs(text) + "\n"


# -- claims ------------------------------------------------------------------------------------------------------------


def findings(claim: Claim, records: Sequence[Record]) -> list[Finding]:
    return [finding for record in records for finding in (claim.test(record) if claim.test else ())]


def _claims(records: Sequence[Record], connectivities: Sequence[Any]) -> tuple[str, str]:
    """The table of claims, and a section for each that was tested."""
    rows, details = [], []
    for index, claim in enumerate(CLAIMS, start=1):
        tested = findings(claim, records)
        measured = [finding for finding in tested if finding.verdict != "not testable here"]
        reasons = _reasons([finding for finding in tested if finding.verdict == "not testable here"])
        if claim.one_basin:
            verdict, figures = analyses.basin(connectivities, *claim.one_basin)
        else:
            verdict = claims.summary(tested) if tested else f"not testable here: {claim.why_not}"
            figures = "; ".join(map(_figure, measured)) or reasons
        rows.append([str(index), claim.text, claim.source, f"**{verdict}**", figures or MISSING])
        if tested:
            parts = [f"### {index}. {claim.text}"]
            parts += [table(_FINDING, [_finding_row(finding) for finding in measured])] if measured else []
            parts += [f"Not testable here: {reasons}."] if reasons else []
            details.append("\n\n".join(parts))
    return table(["#", "claim", "source", "here", "figures"], rows), "\n\n".join(details)


def _finding_row(finding: Finding) -> list[str]:
    seeds = ", ".join(map(str, finding.seeds))
    values = (mean(finding.estimate), seeds, finding.means, finding.passes, finding.seconds)
    return [title_of(finding.experiment), finding.figure, *(value or MISSING for value in values), finding.verdict]


def _reasons(untested: Sequence[Finding]) -> str:
    """Each reason once, with the experiments that it holds for."""
    titles: dict[str, list[str]] = {}
    for finding in untested:
        titles.setdefault(finding.figure, []).append(title_of(finding.experiment))
    return "; ".join(f"{reason} ({'; '.join(dict.fromkeys(names))})" for reason, names in titles.items())


def _figure(finding: Finding) -> str:
    """A finding in a few words, for the table of claims."""
    text = f"{title_of(finding.experiment)}: {finding.figure}"
    return f"{text} {mean(finding.estimate)}, n = {finding.estimate.n}" if finding.estimate else text


# -- experiments -------------------------------------------------------------------------------------------------------


def _experiment(record: Record, folder: str) -> str:
    settings = _by_harmonic_mean(record)
    parts = [f"## {title_of(record.name)}", _made(record), *_outcome(record, settings), *_robustness(record, settings)]
    for measure, (what, _) in _drawn(record).items():
        alt = f"{title_of(record.name)}: {what}; means and 95 % intervals over seeds"
        parts.append(f"![{alt}]({folder}/{_file(record, measure)})")
    return "\n\n".join([*parts, *_every_attack(record, settings)])


def _by_harmonic_mean(record: Record) -> list[Setting]:
    """The grades and the control, the most robust first."""
    means = {setting.label: setting.estimate("harmonic_mean") for setting in record.settings}
    shown = [setting for setting in record.settings if setting.is_grade or setting.control]
    return sorted(shown, key=lambda setting: -estimate.mean if (estimate := means[setting.label]) else 1.0)


def _command(record: Record) -> str:
    return f"sh research/d2u/run.sh {record.name}"


def _made(record: Record) -> str:
    runs = sorted((run for setting in record.settings for run in setting.runs), key=lambda run: run.run_id or "~")
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    commits = list(dict.fromkeys(run.git for run in runs if run.git))
    commit = f"commit {commits[0]}{' and later ones' if len(commits) > 1 else ''}" if commits else "commit not known"
    before, retrained = (
        ", ".join(f"{words(key)} {number(value)}" for key, value in metrics.items()) or MISSING
        for metrics in (record.before, record.retrained)
    )
    made = f"Made by `{_command(record)}`: seeds {seeds}, {commit}."
    return f"{made} Before unlearning: {before}. The retrained model: {retrained}."


def _outcome(record: Record, settings: Sequence[Setting]) -> list[str]:
    metrics = record.bed.outcome
    rows = [
        [
            setting.label,
            rate(setting.learning_rate),
            f"{setting.passes['forward']:g} + {setting.passes['backward']:g}",
            number(setting.seconds) if setting.seconds else MISSING,
            *(mean(setting.estimate(f"after:{metric}")) for metric in metrics),
            unmatched(setting, record) or "matched",
        ]
        for setting in settings
    ]
    header = ["grade", "rate", "passes forward + backward", "seconds, median", *map(words, metrics), ""]
    return ["Forgetting and utility, means over seeds with 95 % intervals:", table(header, rows)]


def _robustness(record: Record, settings: Sequence[Setting]) -> list[str]:
    runs = [run for setting in settings for run in setting.runs]
    labels = [
        label
        for label in record.attacks()
        if any(run.attacks[label].R is not None for run in runs if label in run.attacks)
    ]
    rows = []
    for setting in settings:
        estimates = [setting.estimate(f"R:{label}") for label in labels]
        harmonic = setting.estimate("harmonic_mean")
        values = [setting.estimate("R"), setting.estimate("Q"), harmonic, *estimates]
        mark = " (!)" if unmatched(setting, record) else ""
        rows.append([f"{setting.label}{mark}", *map(mean, values), str(harmonic.n if harmonic else 0)])
    text = (
        "R is what the retrained model regains under relearning, divided by what the unlearned model regains, under "
        "the relearning attack that makes it smallest (held-back attacks apart). "
        if record.bed.retrained
        else "No retrained model is known, so R is the share kept under the relearning attack that leaves least "
        "(held-back attacks apart). "
    )
    text += (
        "Q is what the strongest rounding that did not break the model leaves. Then come their harmonic mean and, "
        "where it is measured, R of each attack. (!): not matched, and so in no comparison."
    )
    header = ["grade", "R", "Q", "harmonic mean", *(f"R, {_head(label, record)}" for label in labels), "seeds"]
    return [text, table(header, rows)]


def _every_attack(record: Record, settings: Sequence[Setting]) -> list[str]:
    labels = record.attacks()
    rows = []
    for setting in settings:
        cells = []
        for label in labels:
            broken = sum(label in run.attacks and run.attacks[label].collapsed for run in setting.runs)
            cells.append(shares(setting.estimate(f"kept:{label}")) + (f" ({broken} broken)" if broken else ""))
        rows.append([setting.label, *cells])
    keys = "; ".join(f"{_head(label, record)}: `{label}`" for label in labels)
    text = (
        "The share of the forgetting that each attack leaves, in per cent. An attack that broke the model proves "
        f"nothing and is left out of the mean. {keys}."
    )
    return [text, table(["grade", *(_head(label, record) for label in labels)], rows)]


def _drawn(record: Record) -> dict[str, tuple[str, str]]:
    """The measures that are drawn, each with its title and that of its axis."""
    return {
        "harmonic_mean": ("robustness of each grade", "harmonic mean of R and Q"),
        record.measure(claims.HALF): ("what relearning on half of them leaves", "share kept"),
    }


def _file(record: Record, measure: str) -> str:
    return f"{record.name.replace('/', '-')}-{measure.partition(':')[0]}.svg"


def _drawing(record: Record, measure: str) -> str:
    what, across = _drawn(record)[measure]
    rows: list[tuple[str, Estimate, bool]] = []
    for setting in _by_harmonic_mean(record):
        estimate = setting.estimate(measure)
        if estimate is not None:
            rows.append((setting.label, estimate, not unmatched(setting, record)))
    return dots(f"{title_of(record.name)}: {what}", across, rows)


def _head(label: str, record: Record) -> str:
    return f"{short(label)}{' (held back)' if label in record.held_back else ''}"


def short(label: str) -> str:
    """An attack's name for a table's head."""
    name, _, rest = label.partition(":")
    settings = dict(entry.split("=", 1) for entry in rest.split(",") if "=" in entry)
    if name == "quantize":
        return f"{settings.get('bits', '4')}-bit{' asymmetric' if settings.get('symmetric') == 'False' else ''}"
    if name == "relearn":
        what = settings.get("data", "all" if settings.get("holdout") == "0" else "half")
        return f"relearn {what}, {settings.get('steps', '20')}"
    return name


# -- the room, the tuning, and what is missing -------------------------------------------------------------------------


def _room(names: Sequence[str]) -> str:
    rooms = []
    for bed in (read_testbed(name) for name in TESTBEDS if name in names):
        limits = []
        for key, limit in bed.room.items():
            share = {"retain": " of that before", "general": " times that before"}.get(key.partition("_")[0], "")
            limits.append(f"{words(key)} at {'least' if key.startswith('retain') else 'most'} {limit:g}{share}")
        limits += [f"{words(k)} at most {v:g} times the retrained model's" for k, v in bed.room_of_retrained.items()]
        rooms.append(f"{bed.title or bed.name.capitalize()}: {'; '.join(limits)}.")
    return " ".join(rooms)


def _tuning(records: Sequence[Record]) -> str:
    rows: list[list[str]] = []
    asked: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for tuning in record.tuning:
            asked.setdefault((tuning.target, tuning.bound), []).append(title_of(record.name))
            for trial in tuning.trials:
                figures = [number(trial.after[key]) if key in trial.after else MISSING for key in MOVED]
                verdict = f"{trial.verdict}, chosen" if trial.chosen else trial.verdict
                about = [title_of(record.name), tuning.name, str(tuning.steps), rate(trial.learning_rate)]
                rows.append([*about, *figures, verdict])
    parts = []
    if rows:
        goals = "; ".join(
            f"{' and '.join(dict.fromkeys(names))}: target `{target}`, bound `{bound}`"
            for (target, bound), names in asked.items()
        )
        parts.append(f"Every candidate, on a seed that the evidence does not use. {goals}.")
        parts.append(table(["experiment", "setting", "steps", "rate", *map(words, MOVED), ""], rows))
    failed = [
        [title_of(record.name), setting.label, str(run.seed), run.status, run.reason or MISSING]
        for record in records
        for setting in record.settings
        for run in setting.runs
        if run.broken
    ]
    if not failed:
        return "\n\n".join([*parts, "No run of the evidence collapsed or failed."])
    parts.append("Runs of the evidence that collapsed or failed:")
    return "\n\n".join([*parts, table(["experiment", "setting", "seed", "status", "reason"], failed)])


def _not_run(records: Sequence[Record]) -> str:
    run = {record.name for record in records}
    missing = [title for name, title in OBJECTIVES.items() if f"biographies/{name}" not in run]
    return f"The experiments under {' and '.join(missing)} on biographies. " if missing else ""


def _ran(records: Sequence[Record]) -> str:
    grades = [
        f"{title_of(record.name)}: {', '.join(setting.name for setting in _current(record) if setting.is_grade)}"
        for record in records
    ]
    return f"Grades that were run after tuning: {'; '.join(grades)}."


def _few_seeds(records: Sequence[Record]) -> str:
    short_of = []
    for record in records:
        meant = len(record.bed.seeds)
        few = [f"{setting.name} {len(setting.runs)}" for setting in _current(record) if len(setting.runs) < meant]
        if few:
            short_of.append(f"{title_of(record.name)}: {', '.join(few)}")
    return f"Five seeds were meant for each setting. These have fewer: {'; '.join(short_of)}. " if short_of else ""


def _current(record: Record) -> list[Setting]:
    return [setting for setting in record.settings if not setting.superseded and not setting.control]
