"""What the command prints: one table, the verdict beneath it, and the same questions asked of each model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from letgo.core.terminal import visible
from letgo.report.answers import ShownQuestion, collect, cut, marked, stage_title
from letgo.report.numbers import MISSING, duration, interval, number, percent
from letgo.report.table import Column, TableRow, columns, rows, usual_n
from letgo.report.verdict import verdict
from letgo.report.wording import wording_caution
from letgo.runs.results import Result

LONGEST_ANSWER = 160
_SPARE = 4
_OUTCOME_COLOUR = {"survived": "green", "not survived": "red", "can't tell": "yellow", "collapsed": "red"}
_COLOUR = {"good": "green", "warn": "yellow", "bad": "red"}


def print_result(result: Result, console: Console) -> None:
    """One table with a row for each model (before, after, references, attacks) and a column for each metric: values
    with their 95 % intervals, n in the heading and in each cell that has another n. Then status and verdict."""
    # An attack's baseline has "before" and "after"; "before" is on the page alone, so that the table stays short.
    shown = [row for row in rows(result) if row.kind != "baseline" or row.label.startswith("after")]
    metrics = columns([result])
    if shown:
        console.print(_table(shown, _fitting(shown, metrics, console)))
    colour = "green" if result.status == "finished" else "red"
    status = Text.assemble("status: ", (result.status, f"bold {colour}"))
    if result.total_seconds:
        status.append(f"   time: {duration(result.total_seconds)}", "dim")
    console.print(status)
    judged = verdict(result)
    console.print(Text(visible(f"{judged.mark} {judged.headline}"), f"bold {_COLOUR[judged.tone]}"))
    for sentence in judged.sentences:
        console.print(Text(visible(f"  {sentence}")))
    if caution := wording_caution(result):
        console.print(Text(f"! {caution}", "yellow"))


def print_columns(
    columns: Mapping[str, Sequence[str]], last: Sequence[str], console: Console | None = None, *, longest: int = 30
) -> None:
    """A table of columns by their headings that fits the terminal: what it has no room for is left out, those in
    `last` at the very end and in that order, and named beneath.

    Args:
        longest: a wider cell is broken into lines.
    """
    console, kept = console or Console(), dict(columns)
    widths = {
        name: min(max(len(line) for cell in (name, *cells) for line in cell.split("\n")), longest)
        for name, cells in columns.items()
    }
    dropped = []
    for name in [*(name for name in reversed(list(columns)) if name not in last), *last]:
        if len(kept) > 1 and sum(widths[each] + 2 for each in kept) > console.width:
            dropped.append(name)
            del kept[name]
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in kept:
        table.add_column(Text(visible(name)), overflow="fold", max_width=longest)
    for row in zip(*kept.values(), strict=True):
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)
    if dropped:
        console.print(Text(f"no room for: {', '.join(reversed(dropped))}", "dim"))


def print_answers(samples: Iterable[Mapping[str, Any]], console: Console, limit: int = 4) -> None:
    """The first `limit` questions of the forget and of the retain set, with each model's answer beneath the question;
    `samples` are the rows of samples.jsonl."""
    samples = list(samples)
    for which, title in (("forget", "To be forgotten"), ("retain", "To be kept")):
        stages, questions = collect(samples, which)
        if not questions or limit < 1:
            continue
        names = _stage_names(stages)
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", show_header=False)
        table.add_column("model", style="dim", ratio=1, overflow="fold")
        table.add_column("answer", ratio=4, overflow="fold")
        for question in questions[:limit]:
            table.add_row(Text("question"), Text(visible(question.question), "bold"))
            for stage in stages:
                table.add_row(Text(visible(names[stage])), _answer(question, stage))
            table.add_section()
        console.print(table)


def _table(shown: Sequence[TableRow], metrics: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", overflow="fold", min_width=11)
    for column in metrics:
        n = usual_n(shown, column.key)
        head = Text("\n".join(column.title.split(" ", 1)))
        head.append(f"\nn={n:,}" if n else "\n", "dim")
        table.add_column(head, justify="right", no_wrap=True)
    attacked = any(row.attack is not None for row in shown)
    needed = {row.attack.threshold for row in shown if row.attack is not None}
    if attacked:
        least = f"≥{percent(needed.pop())}" if len(needed) == 1 else ""
        table.add_column(Text.assemble("kept", (f"\n{least}", "dim")), justify="right", no_wrap=True)
        table.add_column(Text("outcome"), no_wrap=True)
    for index, row in enumerate(shown):
        cells = [_cell(row, column.key, usual_n(shown, column.key)) for column in metrics]
        if attacked:
            cells += [_kept(row), _survived(row)]
        last = index + 1 == len(shown) or shown[index + 1].kind != "baseline"
        # An attack's settings stand in the sentences below; here only where its name alone is not enough.
        namesakes = [other for other in shown if other.kind == "attack" and other.label == row.label]
        table.add_row(_label(row, bare=row.kind == "attack" and len(namesakes) == 1), *cells, end_section=last)
    return table


def _fitting(shown: Sequence[TableRow], metrics: Sequence[Column], console: Console) -> list[Column]:
    """The columns that the terminal has room for: general ones are dropped first, then those of the rows trained on,
    then the last of several forget metrics. The page and the JSON have them all."""
    kept = list(metrics)
    while len(kept) > 1 and console.measure(_table(shown, kept)).minimum + _SPARE > console.width:
        general, trained, forget = (
            [column for column in kept if column.key.startswith(prefix)]
            for prefix in ("general_", "trained_", "forget_")
        )
        kept.remove((general or trained or forget[1:] or kept)[-1])
    return kept


def _label(row: TableRow, *, bare: bool) -> Text:
    if row.kind == "baseline":
        return Text(f"  {row.label}", "dim")
    name = ("after " if row.kind == "attack" else "") + visible(row.label)
    return _with_details(name, [visible(row.detail)] if row.detail and not bare else [])


def _cell(row: TableRow, key: str, usual: int | None) -> Text:
    metric = row.metrics.get(key)
    if metric is None:
        return Text(MISSING, "dim")
    lines = [interval(metric)] + ([f"n={metric.n:,}"] if metric.n != usual else [])
    return _with_details(number(metric.value), lines, "dim" if row.kind == "baseline" else "bold")


def _kept(row: TableRow) -> Text:
    if row.kept is None:
        return Text(MISSING, "dim")
    return _with_details(row.kept, ["worst", row.worst_seed] if row.worst_seed else [])


def _with_details(text: str, details: Sequence[str], style: str = "bold") -> Text:
    """Text with dim lines beneath it."""
    lines = Text(text, style)
    for detail in details:
        lines.append(f"\n{detail}", "not bold dim")
    return lines


def _survived(row: TableRow) -> Text:
    if row.attack is None or row.outcome is None:
        return Text(MISSING, "dim")
    return Text(row.outcome.replace(" ", "\n", 2).replace("\n", " ", 1), f"bold {_OUTCOME_COLOUR[row.attack.outcome]}")


def _answer(question: ShownQuestion, stage: str) -> Text:
    answer = question.answers.get(stage)
    if answer is None or answer.text is None:
        return Text(MISSING, "dim")
    written = " ".join(visible(cut(answer.text, LONGEST_ANSWER)).split())
    text = Text()
    for piece, hit in marked(written, question.expected):
        text.append(piece, "underline" if hit else "")
    if not written:
        text.append("(empty)", "dim")
    if answer.probability is not None:
        text.append(f"  p {number(answer.probability)}", "dim")
    if answer.seen:
        text.append("  (trained on by the attacker)", "dim")
    return text


def _stage_names(stages: Sequence[str]) -> dict[str, str]:
    """Without an attack's settings, where no other attack has its name."""
    short = {stage: ":".join(stage.split(":")[:2]) for stage in stages}
    names = list(short.values())
    return {stage: stage_title(name if names.count(name) == 1 else stage) for stage, name in short.items()}
