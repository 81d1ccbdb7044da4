"""What is tried under faults: a command, the command that goes on after it, and what must then be there."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import tiny, warm
from tests.faults.injector import KINDS

VOLATILE = {"run_id", "created", "attested", "seconds", "peak_memory_bytes"}
"""What differs from run to run in a record of ours."""


@dataclass(frozen=True)
class Job:
    """A command on files below a folder, in which `{folder}` stands for it.

    Attributes:
        words: the command.
        again: the command that goes on with it after a fault.
        before: commands whose outcome it begins with.
    """

    name: str
    words: Sequence[str]
    again: Sequence[str]
    before: Sequence[Sequence[str]] = ()


SETTINGS = {
    "learning_rate": 1e-3,
    # Two steps an epoch: the run ends in the middle of one.
    "max_steps": 5,
    "per_device_train_batch_size": 3,
    "save_steps": 2,
    "seed": 3,
}
RUN = ("unlearn", "{folder}/run.yaml", "--quiet")
EXPORTING = ("unlearn", "{folder}/exporting.yaml", "--quiet")
ATTACKS = ("--attack", "quantize:bits=4", "--attack", "relearn:steps=2,learning_rate=1e-3")
ATTACK = ("attack", "{folder}/out/run", *ATTACKS, "--quiet")
BARE = (
    *("attack", "biographies-retrained", "--original", "biographies", "--benchmark", "biographies", "--limit", "2"),
    *("--attack", "quantize:bits=4", "--attack", "quantize:bits=3", "-o", "{folder}/out/attacked", "--quiet"),
)
EVALUATE = ("eval", "biographies", "--benchmark", "biographies", "--limit", "2", "-o", "{folder}/out/eval", "--quiet")
SWEEP = ("sweep", "{folder}/grid.yaml", "--quiet")
ANALYZE = ("analyze", "certificate", "{folder}/out/run", "--draws", "8", "--limit", "2", "--quiet")
EXPORT = ("export", "biographies", "-f", "q8_0", "--rounding", "stochastic", "-o", "{folder}/out/gguf", "--quiet")
PACKED = ("export", "biographies", "-f", "int4", "-o", "{folder}/out/packed", "--quiet")
AUDIT = (
    *("audit", "--model", "{folder}/model", "--base", "{folder}/model", "--forget", "{folder}/forget.jsonl"),
    *("--retain", "{folder}/retain.jsonl", "--suite", "quick", "-o", "{folder}/out/audit", "--quiet"),
)
REQUESTS = (
    *("requests", "run", "{folder}/requested.yaml", "--data", "{folder}/people.jsonl", "--quiet"),
    *("--register", "{folder}/out/requests.jsonl", "-o", "{folder}/out/requests", "--root", "{folder}/out"),
)
ASKED = ("requests", "add", "R-1", "--subject", tiny.FORGET[0]["group"], "--register", "{folder}/out/requests.jsonl")
ATTEST = ("attest", "{folder}/out/run", "--quiet")
REPORT = ("report", "{folder}/out", "--output", "{folder}/out/report.html")
JOBS = {
    job.name: job
    for job in (
        Job("unlearn", RUN, (*RUN, "--resume")),
        Job("attack", ATTACK, ATTACK, before=[RUN]),
        Job("attack on a model", BARE, BARE),
        Job("eval", EVALUATE, (*EVALUATE, "--resume")),
        Job("sweep", SWEEP, (*SWEEP, "--resume")),
        Job("analyze", ANALYZE, ANALYZE, before=[RUN]),
        Job("audit", AUDIT, (*AUDIT, "--resume")),
        Job("report", REPORT, REPORT, before=[RUN]),
        Job("attest", ATTEST, ATTEST, before=[RUN]),
        Job("requests", REQUESTS, (*REQUESTS, "--resume"), before=[ASKED]),
        Job("unlearn and export", EXPORTING, (*EXPORTING, "--resume")),
        Job("export", EXPORT, EXPORT),
        Job("export packed", PACKED, PACKED),
    )
}


def make_folder(folder: Path) -> None:
    """The user's files: a model, rows, a run's YAML and a grid."""
    model = tiny.save(folder / "model", tiny.make_model(), tiny.make_tokenizer())
    settings = tiny.own_files(folder, model, **SETTINGS)
    attacks = {"attacks": ["quantize:bits=4"], "output_dir": str(folder / "out" / "run")}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings | attacks), encoding="utf-8")
    export = {"export": {"format": "fp8", "rounding": "stochastic"}, "output_dir": str(folder / "out" / "exporting")}
    (folder / "exporting.yaml").write_text(yaml.safe_dump(settings | {"max_steps": 1} | export), encoding="utf-8")
    tiny.write_jsonl(folder / "people.jsonl", [*tiny.FORGET, *tiny.RETAIN])
    asked = {key: value for key, value in settings.items() if key not in ("forget", "retain", "output_dir")}
    (folder / "requested.yaml").write_text(yaml.safe_dump(asked | {"max_steps": 1}), encoding="utf-8")
    del settings["output_dir"]
    grid = {
        "output_dir": str(folder / "out" / "sweep"),
        "base": settings | {"max_steps": 2},
        "grid": {"optimizer": ["adamw", "signsgd"]},
        "attacks": ["quantize:bits=4"],
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    said: str
    wrong: str


class Bench:
    """A folder with the user's files, in which a job is done again and again, each time from its beginning."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder.resolve()
        self.work = self.folder / "work"
        make_folder(self.work)
        (self.work / "out").mkdir()
        for words in job.before:
            self.must(words)
        shutil.copytree(self.work / "out", self.folder / "begin")
        self.must(job.words, count=True)
        self.events = Path(f"{self.work / 'out'}.events").read_text(encoding="utf-8").splitlines()
        self.whole = outcome(self.work / "out")

    def must(self, words: Sequence[str], *, count: bool = False) -> None:
        ended = self.run(words, fault=("kill", 0) if count else None)
        if ended.code:
            raise AssertionError(f"{words} ended with {ended.code}:\n{ended.wrong}")

    def run(self, words: Sequence[str], *, fault: tuple[str, int] | None = None, timeout: float = 120) -> Ended:
        """Do a command, under a fault where one is named."""
        words = [word.format(folder=self.work) for word in words]
        # Not files: where no file can grow, the message must still arrive.
        with tempfile.TemporaryDirectory() as folder:
            pipes = [Path(folder, name) for name in ("said", "wrong")]
            texts = ["", ""]
            for pipe in pipes:
                os.mkfifo(pipe)

            def read(number: int) -> None:
                texts[number] = pipes[number].read_text(encoding="utf-8", errors="replace")

            readers = [threading.Thread(target=read, args=(number,)) for number in (0, 1)]
            for reader in readers:
                reader.start()
            module = ["-m", "letgo"] if fault is None else ["-m", "tests.faults.injector"]
            place = [] if fault is None else [fault[0], str(fault[1]), str(self.work / "out")]
            caches = {"LETGO_REFERENCES": str(self.work / "out" / ".references"), "COLUMNS": "200"}
            process = warm.start([*module, *place, *words], said=pipes[0], wrong=pipes[1], **caches)
            process.join(timeout)
            hung = process.exitcode is None
            if hung:
                process.kill()
                process.join()
            for reader in readers:
                reader.join()
        return Ended(None if hung else process.exitcode, *texts)

    def try_fault(self, kind: str, at: int) -> str:
        """The job under a fault, and gone on with: what is wrong with its end; empty where nothing is."""
        shutil.rmtree(self.work / "out")
        shutil.copytree(self.folder / "begin", self.work / "out")
        ended = self.run(self.job.words, fault=(kind, at))
        if problem := self._wrong_end(kind, ended):
            return f"{problem}\n{ended.wrong[-3000:]}"
        again = self.job.again
        if ended.code == 0 and ("--resume" in again or again[0] == "export"):
            # The fault did no harm: nothing is left to be done.
            again = ()
        if again:
            ended = self.run(again)
            if ended.code == 2 and re.search("nothing to resume|holds an export already", ended.wrong):
                ended = Ended(0, "", "")
            if ended.code:
                return f"going on ended with {ended.code}\n{ended.wrong[-3000:]}"
        now = outcome(self.work / "out")
        differ = [name for name in {**self.whole, **now} if self.whole.get(name) != now.get(name)]
        return "" if not differ else f"other outcome: {_differences(self.whole, now, differ)}"

    def _wrong_end(self, kind: str, ended: Ended) -> str:
        codes = {"kill": (-signal.SIGKILL,), "interrupt": (130, 0), "error": (0, 1), "full": (0, 1)}[kind]
        if ended.code is None:
            return "it hung"
        if ended.code not in codes:
            return f"it ended with {ended.code}"
        if "Traceback" in ended.wrong or "Exception ignored" in ended.wrong:
            return "a traceback"
        if ended.code == 1 and ended.wrong.count("letgo: ") != 1:
            return "not one message"
        return ""


def spread(bench: Bench, count: int) -> list[tuple[str, int]]:
    """So many faults of a job, spread evenly over its moments, of all kinds in turn."""
    moments = (1 + number * (len(bench.events) - 1) // max(1, count - 1) for number in range(count))
    return list(zip(itertools.cycle(KINDS), moments))


def outcome(folder: Path) -> dict[str, Any]:
    """Every file that a job leaves, without what differs from run to run."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        # Caches, the index, who held which lock, and what a killed writer left, which a later one removes.
        other = name.startswith(".references") or name.endswith((".lock", ".letgo-part"))
        other = other or ".sqlite" in name or ".claims" in name
        if path.is_file() and not other:
            files[name] = _content(path)
    return files


def _content(path: Path) -> Any:
    if path.name.endswith(".json") and path.parent.name != "model":
        return _steady(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix in (".safetensors", ".gguf"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    raw = path.read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return hashlib.sha256(raw).hexdigest()
    # A card and a page tell when it was made, how long it took, in how much memory.
    return re.sub(r"\d{4}-\d\d-\d\dT\S+|[\d.,]+ (s|min|h|MB|GB)\b", "N", text)


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(inner) for key, inner in value.items() if key not in VOLATILE}
    return [_steady(inner) for inner in value] if isinstance(value, list) else value


def _differences(whole: dict[str, Any], now: dict[str, Any], names: Sequence[str]) -> str:
    shown = []
    for name in names:
        there = "missing" if name not in now else "left behind" if name not in whole else "other content"
        shown.append(f"{name} ({there})")
        if name in now and name in whole:
            texts = (
                json.dumps(each[name], indent=1) if name.endswith(".json") else str(each[name]) for each in (whole, now)
            )
            shown += list(difflib.unified_diff(*(text.splitlines() for text in texts), "whole", "now", n=0))[:12]
    return "\n".join(shown)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, indent=1)
