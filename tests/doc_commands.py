"""The `letgo …` commands that the documentation shows, as words that can be parsed and run.

A page writes a command as somebody would type it, in an indented or fenced block, over several lines with `\\`, or in
the YAML of a CI job. Beside that it may write `[--option VALUE]` for what may be left out, `[--a | --b]` and `x|y` for
one of several, and `…` for the settings of a run that it leaves to the reader. Every variant is a command here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "research").rglob("*.md")),
    *sorted(path for path in (ROOT / "recipes").rglob("*") if path.suffix in (".yaml", ".sh", ".py")),
]
_COMMAND = re.compile(r"^(?:\S+=\S+ )*(?:(?:torchrun|accelerate launch|python) (?:.* )?-m )?letgo (?=[a-z-])")
_ALTERNATIVES = re.compile(r"[\w*.-]+(?:\|[\w*.-]+)+")
_SHELL_ENDS = (">", "|", "||", "&&")


@dataclass(frozen=True)
class Command:
    """One variant of a command, as its page has it; `words` follow `letgo`."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: letgo {shlex.join(self.words)}"


def commands_of(page: str, text: str) -> list[Command]:
    """The commands in the blocks of a page, each variant by itself."""
    found: dict[tuple[str, ...], Command] = {}
    for line, command, variables in _written(text):
        for words in _variants(command):
            known = tuple(_expanded(word, variables) for word in words)
            found.setdefault(known, Command(page, line, known))
    return list(found.values())


def mentions_of(text: str) -> list[list[str]]:
    """The words of each `letgo …` between backticks: commands that may lack arguments."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"(?<!`)`letgo\s([^`]+)`", prose)
    return [list(words) for span in spans for words in _variants("letgo " + " ".join(span.split()))]


def files_of(text: str) -> dict[str, str]:
    """The files of rows that a page shows whole, each after its name."""
    return dict(re.findall(r"`(\w+\.jsonl)`:\n\n```json\n(.*?)```", text, flags=re.DOTALL))


def _written(text: str) -> Iterator[tuple[int, str, dict[str, str]]]:
    """The commands as they are written, each on one line, with the number of its first line, and what the variables of
    a CI job hold."""
    for block in re.finditer(r"^( *)```ya?ml\n(.*?)^\1```", text, flags=re.MULTILINE | re.DOTALL):
        for document in yaml.safe_load_all(block[2]):
            for script in _strings(document):
                for command in filter(_COMMAND.match, script.splitlines()):
                    at = re.compile(r"\s+".join(map(re.escape, command.split()))).search(text, block.start())
                    yield text.count("\n", 0, at.start() if at else block.start()) + 1, command, _variables(document)
        text = text.replace(block[2], re.sub(".", " ", block[2]))
    lines, fenced, number = text.splitlines(), False, 0
    while number < len(lines):
        first, line = number, lines[number]
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = f"{line[:-1]} {lines[number].lstrip(' #')}"
        number += 1
        fenced ^= line.lstrip().startswith("```")
        shown = line.strip() if fenced else re.sub(r"^(?: {4,}|# +)(?=\S)", "", line) if line[:1] in " #" else ""
        if _COMMAND.match(shown):
            yield first + 1, shown, {}


def _variables(document: Any) -> dict[str, str]:
    """What a CI job's own `env` or `variables` set, quotes of the shell around it left to the command."""
    if not isinstance(document, dict):
        return {}
    own = {key: str(value) for name in ("env", "variables") for key, value in (document.get(name) or {}).items()}
    return own | {key: value for part in document.values() for key, value in _variables(part).items()}


def _expanded(word: str, variables: dict[str, str]) -> str:
    """A variable that the job does not set stands for a file of its name."""
    return re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[1]), word)


def _strings(document: Any) -> Iterator[str]:
    if isinstance(document, str):
        yield document
    elif isinstance(document, (dict, list)):
        for part in document.values() if isinstance(document, dict) else document:
            yield from _strings(part)


def _variants(command: str) -> Iterator[tuple[str, ...]]:
    """The command without its options in brackets; and with all of them, once for each alternative."""
    words = _words(_COMMAND.sub("", command))
    parts = _parts(words)
    most = max((len(part) for part in parts), default=1)
    yield tuple(word for part in parts for word in part[0])
    for n in range(1, most):
        yield tuple(word for part in parts for word in part[min(n, len(part) - 1)])


def _words(command: str) -> list[str]:
    reader = shlex.shlex(command, posix=True, punctuation_chars=False)
    reader.whitespace_split, reader.commenters = True, "#"
    words, depth = [], 0
    for word in reader:
        depth += word.startswith("[")
        if word in _SHELL_ENDS and not depth:
            break
        depth -= word.endswith("]")
        words.append(word)
    return words


def _parts(words: list[str]) -> list[list[list[str]]]:
    """The command in parts, each a list of what may stand there: nothing first, for what may be left out."""
    parts: list[list[list[str]]] = []
    inside: list[list[str]] | None = None
    for word in words:
        if word.startswith("[") and inside is None:
            inside, word = [[]], word[1:]
        if inside is None:
            parts.append([[each] for each in word.split("|")] if _ALTERNATIVES.fullmatch(word) else [[word]])
            continue
        closes, word = word.endswith("]"), word.removesuffix("]")
        if word == "|":
            inside.append([])
        elif word:
            inside[-1].append(word)
        if closes:
            spread = [option for given in inside for option in _spread(given)]
            parts.append([[], *spread])
            inside = None
    return parts


def _spread(words: list[str]) -> list[list[str]]:
    """`--strategy ddp|fsdp2` once for each."""
    last = words[-1]
    return [[*words[:-1], each] for each in last.split("|")] if _ALTERNATIVES.fullmatch(last) else [words]
