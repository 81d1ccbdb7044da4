"""The page, from result files alone: each claim with its verdict, the ladders behind it, what missed, the analyses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from letgo.core.errors import UserError
from letgo.core.files import write_text
from letgo.evidence import claims, ideas, places, protocol
from letgo.evidence.claims import CLAIMS, Claim, Finding, unmatched
from letgo.evidence.figures import dots, write_drawing
from letgo.evidence.records import Group, Record, joined, read_record
from letgo.evidence.statistics import Estimate, estimate
from letgo.evidence.subjects import OUTCOME, command_of, in_order, title_of
from letgo.evidence.text import mean, paragraph, rate, shares, table
from letgo.report.numbers import MISSING, number


def write_page(results: Path, output: Path) -> None:
    """Write the page, and its drawings into a folder beside it that bears its name.

    Raises:
        UserError: there are no result files, or one is broken.
    """
    records = [read_record(path) for path in sorted(results.glob("*.json")) if not path.name.startswith("analysis-")]
    if not records:
        raise UserError(f"{results} holds no result files; make them by python -m letgo.evidence collect")
    drawings = output.parent / output.stem
    write_text(output, text_of(records, places.read(results), drawings))


def ladders(records: Sequence[Record]) -> dict[str, Record]:
    """Each objective's ladder on each subject, all its seeds together."""
    by: dict[str, list[Record]] = {}
    for record in records:
        if record.kind == "ladder":
            by.setdefault(record.key, []).append(record)
    known = in_order(by)
    # Also where a grade was given more steps in tuning than the others.
    missed = {
        name: [
            g.name_for_as_many_steps
            for r in records
            if (r.kind, r.key) == ("tuning", name)
            for g in r.groups
            if not g.reached
        ]
        for name in known
    }
    return {name: joined(by[name]).model_copy(update={"missed": missed[name]}) for name in known}


def text_of(records: Sequence[Record], analyses: places.Places, drawings: Path | None = None) -> str:
    """The page's text; drawings are written where a folder for them is given."""
    found = ladders(records)
    tunings = [record for record in records if record.kind == "tuning"]
    parts = [protocol.head(found), "## The claims", *_claims(found, analyses)]
    for objective, record in found.items():
        parts += _ladder(objective, record, drawings)
    parts += _missed(tunings, found)
    parts += places.section(analyses)
    tried = ideas.tried(records, found)
    parts += ideas.section(tried, found)
    parts += [protocol.foot(found, tried)]
    return "\n\n".join(part for part in parts if part) + "\n"


# -- claims ------------------------------------------------------------------------------------------------------------


def findings(claim: Claim, found: Mapping[str, Record]) -> list[Finding]:
    return [finding for record in found.values() for finding in (claim.test(record) if claim.test else ())]


def _claims(found: Mapping[str, Record], analyses: places.Places) -> list[str]:
    rows, details = [], []
    for place, claim in enumerate(CLAIMS, start=1):
        tested = findings(claim, found)
        measured = ""
        if claim.one_basin:
            said, measured = places.basin(analyses, *claim.one_basin)
        else:
            said = claims.summary(tested) if tested else f"not testable here: {claim.why_not or 'no run'}"
        made = [one for one in tested if one.verdict != "not testable here"]
        reasons = _reasons([one for one in tested if one.verdict == "not testable here"])
        # Why a comparison can't be made stands below, with the claim; here only where there is none at all.
        shown = measured or "; ".join(map(_figure, made)) or reasons or MISSING
        rows.append([str(place), claim.says, claim.source, f"**{said}**", shown])
        if tested:
            parts = [f"### {place}. {claim.says}"]
            if made:
                parts.append(table(_FINDING, [_finding_row(finding) for finding in made]))
            if reasons:
                parts.append(paragraph(f"Not testable here: {reasons}."))
            details.append("\n\n".join(parts))
    made_by = "; ".join(f"{title_of(key)} `{command_of(key)}`" for key in found)
    return [
        table(["#", "claim", "source", "here", "figures"], rows),
        "## Claim by claim",
        paragraph((claims.__doc__ or "").partition("\n\n")[2]),
        paragraph(
            "Passes and seconds are of one run's unlearning, of the first grade against the second: forward passes, a "
            f"backward pass counted as two, and the median over seeds. The commands that make the runs: {made_by}."
        ),
        *details,
    ]


_FINDING = ["objective", "difference", "mean (95 % interval)", "seeds", "all seeds", "passes", "seconds", "verdict"]


def _finding_row(finding: Finding) -> list[str]:
    seeds = ", ".join(map(str, finding.seeds)) or MISSING
    name = title_of(finding.objective)
    found = mean(finding.estimate) if finding.estimate else MISSING
    told = (text or MISSING for text in (finding.means, finding.passes, finding.seconds))
    return [name, finding.figure, found, seeds, *told, finding.verdict]


def _reasons(untested: Sequence[Finding]) -> str:
    """Each reason once, with the ladders that it holds for."""
    by: dict[str, list[str]] = {}
    for finding in untested:
        by.setdefault(finding.figure, []).append(title_of(finding.objective))
    return "; ".join(f"{reason} ({'; '.join(dict.fromkeys(titles))})" for reason, titles in by.items())


def _figure(finding: Finding) -> str:
    """A finding in a few words, for the table of claims."""
    name = title_of(finding.objective)
    number_of = f", n = {finding.estimate.n}" if finding.estimate else ""
    return f"{name}: {finding.figure} {mean(finding.estimate) if finding.estimate else ''}".strip() + number_of


# -- ladders -----------------------------------------------------------------------------------------------------------


def _ladder(objective: str, record: Record, drawings: Path | None) -> list[str]:
    name = title_of(objective)
    grades = [group for group in record.groups if group.plain or group.control]
    groups = sorted(grades, key=lambda group: -_mean(group, "harmonic_mean"))
    parts = [f"## {name}", _made(record), _outcome(record, groups), _robust(record, groups)]
    if drawings is not None:
        parts.append(_drawn(record, groups, name, drawings))
    return [*parts, _every_attack(record, groups)]


def _made(record: Record) -> str:
    seeds = sorted({cell.seed for group in record.groups for cell in group.cells})
    grids = [Path(source).stem for source in record.sources]
    few = f"the grid {grids[0]}" if len(grids) == 1 else f"the grids {', '.join(grids)}"
    before = ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in record.before.items())
    retrained = ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in record.retrained.items())
    commit = f"commit {record.git or 'not known'}{' and later ones' if len(grids) > 1 else ''}"
    told = f"`{command_of(record.key)}`, {few}, seeds {', '.join(map(str, seeds))}, {commit}."
    return paragraph(f"{told} Before unlearning: {before}. The retrained model: {retrained or MISSING}.")


def _outcome(record: Record, groups: Sequence[Group]) -> str:
    rows = []
    for group in groups:
        cells = [cell for cell in group.cells if cell.after]
        after = {key: estimate([cell.after[key] for cell in cells if key in cell.after]) for key in record.before}
        rows.append(
            [
                group.name,
                rate(group.learning_rate),
                f"{group.passes['forward']:g} + {group.passes['backward']:g}",
                number(group.seconds) if group.seconds else MISSING,
                *(mean(after.get(key)) for key in record.subject.outcome),
                unmatched(group, record) or "matched",
            ]
        )
    header = [
        "grade",
        "rate",
        "passes forward + backward",
        "seconds, median",
        *(k.replace("_", " ") for k in record.subject.outcome),
        "",
    ]
    return "Forgetting and utility, means over seeds with 95 % intervals:\n\n" + table(header, rows)


def _robust(record: Record, groups: Sequence[Group]) -> str:
    labels = [label for label in record.attacks() if any(_has_r(group, label) for group in groups)]
    rows = []
    for group in groups:
        counted = "" if not unmatched(group, record) else " (!)"
        measures = ("R", "Q", "harmonic_mean", *(f"R:{label}" for label in labels))
        found = [group.estimate(measure) for measure in measures]
        rows.append([f"{group.name}{counted}", *(mean(one) for one in found), str(found[2].n if found[2] else 0)])
    regained = (
        "R is what the retrained model regains under relearning over what the unlearned one regains: of the relearning "
        "attack that is worst in that, held-back ones apart. "
        if record.subject.retrained
        else "No retrained model is known: R is the share kept under the relearning attack that leaves least, "
        "held-back ones apart. "
    )
    text = (
        f"{regained}Q is what the strongest rounding leaves that did not break the model. Beside them their harmonic "
        "mean, and R of each attack where it is another. (!): not matched, and so in no comparison."
    )
    header = ["grade", "R", "Q", "harmonic mean", *(f"R, {_head(label, record)}" for label in labels), "seeds"]
    return f"{paragraph(text)}\n\n{table(header, rows)}"


def _has_r(group: Group, label: str) -> bool:
    return any(label in cell.attacks and cell.attacks[label].R is not None for cell in group.cells)


def _head(label: str, record: Record) -> str:
    return f"{short(label)}{' (held back)' if label in record.held_back else ''}"


def _drawn(record: Record, groups: Sequence[Group], name: str, drawings: Path) -> str:
    lines = []
    for measure, across in (("harmonic_mean", "harmonic mean of R and Q"), (record.measure(claims.HALF), "share kept")):
        rows: list[tuple[str, Estimate, bool]] = []
        for group in groups:
            found = group.estimate(measure)
            if found is not None:
                rows.append((group.name, found, not unmatched(group, record)))
        if not rows:
            continue
        told = "robustness of each grade" if measure == "harmonic_mean" else "what relearning on half of them leaves"
        file = f"{record.key.replace('/', '-')}-{measure.partition(':')[0]}.svg"
        write_drawing(drawings / file, dots(f"{name}: {told}", across, rows))
        lines.append(f"![{name}: {told}; means and 95 % intervals over seeds]({drawings.name}/{file})")
    return "\n\n".join(lines)


def _every_attack(record: Record, groups: Sequence[Group]) -> str:
    labels = record.attacks()
    names = {label: _head(label, record) for label in labels}
    rows = []
    for group in groups:
        cells = []
        for label in labels:
            found = group.estimate(f"kept:{label}")
            broken = sum(label in cell.attacks and cell.attacks[label].collapsed for cell in group.cells)
            cells.append(f"{shares(found)}{f' ({broken} broken)' if broken else ''}")
        rows.append([group.name, *cells])
    keys = "; ".join(f"{names[label]}: `{label}`" for label in labels)
    text = (
        "The share of the forgetting that each attack leaves, in per cent. Where an attack broke the model it proves "
        "nothing and is left out of the mean."
    )
    return f"{paragraph(f'{text} {keys}.')}\n\n{table(['grade', *names.values()], rows)}"


def short(label: str) -> str:
    """An attack's name for a table's head."""
    name, _, rest = label.partition(":")
    settings = dict(one.split("=", 1) for one in rest.split(",") if "=" in one)
    if name == "quantize":
        return f"{settings.get('bits', '4')}-bit{' asymmetric' if settings.get('symmetric') == 'False' else ''}"
    if name == "relearn":
        what = settings.get("data", "all" if settings.get("holdout") == "0" else "half")
        return f"relearn {what}, {settings.get('steps', '20')}"
    return name


def _mean(group: Group, measure: str) -> float:
    found = group.estimate(measure)
    return found.mean if found else -1.0


# -- what missed -------------------------------------------------------------------------------------------------------


def _missed(tunings: Sequence[Record], found: Mapping[str, Record]) -> list[str]:
    order = in_order({record.key: record for record in tunings})
    rows: list[list[str]] = []
    said: dict[tuple[str, str], list[str]] = {}
    for record in sorted(tunings, key=lambda one: order.index(one.key)):
        name = title_of(record.key)
        said.setdefault((str(record.target), str(record.bound)), []).append(name)
        for group in record.groups:
            for cell, verdict in zip(group.trials, group.verdicts, strict=True):
                figures = [number(cell.after[key]) if key in cell.after else MISSING for key in OUTCOME]
                chosen = verdict == "reached" and cell.learning_rate == group.learning_rate
                told = f"{verdict}, chosen" if chosen else verdict
                rows.append([name, group.name, rate(cell.learning_rate), *figures, told])
    failed = [
        [title_of(objective), group.name, str(cell.seed), cell.status, cell.reason or MISSING]
        for objective, record in found.items()
        for group in record.groups
        for cell in group.cells
        if cell.broken
    ]
    parts = ["## Tuning, and what missed"]
    if rows:
        asked = "; ".join(
            f"{' and '.join(dict.fromkeys(names))}: target `{target}`, bound `{bound}`"
            for (target, bound), names in said.items()
        )
        text = f"Every candidate, on a seed that the evidence does not use. {asked}."
        header = ["objective", "grade", "rate", *(k.replace("_", " ") for k in OUTCOME), ""]
        parts += [paragraph(text), table(header, rows)]
    parts.append(
        "Runs of the ladders that collapsed or failed:\n\n"
        + table(["objective", "grade", "seed", "status", "reason"], failed)
        if failed
        else "No run of the ladders collapsed or failed."
    )
    return parts
