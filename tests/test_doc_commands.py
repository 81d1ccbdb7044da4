"""Every command that the documentation shows: each is parsed and checked as far as that needs no model, and each that
can be run is run on tiny stand-ins. A command's files and folders are those that its page names (RUN, MODEL,
forget.jsonl, …): the stand-ins have these names."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

import letgo as package
from letgo.analysis import ANALYSES
from letgo.auditing.suites import Try
from letgo.cli import app
from letgo.models.load import load_tokenizer
from letgo.optim.engine.rounding import make_grid
from tests import own_things, shaped, tiny
from tests.doc_commands import PAGES, ROOT, Command, commands_of, files_of, mentions_of
from tests.once import made_once
from tests.servers import few_texts

TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS = {page: found for page, text in TEXTS.items() if (found := commands_of(page, text))}
STAND_INS = {
    "NAME": "rows:forget=forget.jsonl,retain=retain.jsonl",
    "key=value": "seed=1",
    "URL": "http://127.0.0.1:9",
    "http://HOST:8000": "http://127.0.0.1:9",
}
"""What is given in place of the words that stand for no file."""
REST = {
    "--model": ["MODEL"],
    "--forget": ["forget.jsonl", "--retain", "retain.jsonl"],
    "--output": ["rest"],
}
"""What `…` stands for, where the command has it not by itself."""
WORK = (
    *("letgo.cli.demo:demo", "letgo.training.unlearn:unlearn", "letgo.training.requests:unlearn_sequence"),
    *("letgo.training.attack:attack", "letgo.benchmarks.engine.evaluate:evaluate", "letgo.training.export:export"),
    *("letgo.planning:plan", "letgo.planning:plan_devices", "letgo.sweep.execute:sweep", "letgo.sweep.cost:cost"),
    *("letgo.auditing.audit:audit", "letgo.scoring.server.served:connect", "letgo.training.erasure:run_requests"),
    *("letgo.report:write_report", "letgo.report.brief:write_brief", "letgo.report.viewer:Viewer"),
    *("letgo.report.publish:push_to_hub", "letgo.report.letter:write_letter", "letgo.runs.results:read_result"),
    *("letgo.cli.records:_index", "letgo.runs:Index"),
    *(record.target for record in ANALYSES),
)
"""Where the work of the commands begins, after what can be checked without a model."""
NOT_RUN = {
    r"^demo": "minutes; tests/cli/test_demo.py",
    r" (--model )?[\w-]+/[\w.-]+-[\w.-]+ |--model smollm2": "a model of the hub, or of 135 million parameters",
    r" --server ": "a server; tests/scoring/test_server.py and tests/attacks/test_served.py have one",
    r"strategy=fsdp2": "several processes; tests/distributed",
    r"^analyze depth": "a model that knew and one that never did; tests/analysis/test_depth.py",
    r"^push": "a hub; tests/report/test_publish.py",
    r"^view": "until Ctrl-C; tests/report/test_view.py",
    r"^unlearn recipes/": "models and data of the hub; tests/test_recipes.py plans each",
    r"^sweep recipes/": "minutes; tests/sweep",
    r"^sweep .*(--workers|--backend ray)": "processes of their own; tests/sweep",
    r"--benchmark (knowundo|mmlu|lm_eval|copyright)|^runs convert scores": "data of the hub; tests/benchmarks",
    r"saves/eval": "open-unlearning's own files; tests/benchmarks/test_open_unlearning.py",
}
"""Commands that are checked and not run, and why."""
ELSEWHERE = {"docs/own-data.md": "tests/benchmarks/test_own_data.py runs the page as it stands"}
SMALLER = {
    "unlearn": ["--set", "max_steps=2", "--set", "eval_limit=4", "--set", "use_cpu=true", "--batch-size", "2"],
    "requests run": ["--set", "max_steps=1", "--set", "eval_limit=4", "--set", "use_cpu=true"],
    "eval": ["--limit", "4"],
    "audit": ["--limit", "4"],
    "analyze landscape": ["--points", "3", "--limit", "4"],
    "analyze connectivity": ["--points", "3", "--limit", "4"],
    "analyze sharpness": ["--steps", "1", "--draws", "1", "--trace-draws", "1", "--limit", "4"],
    "analyze certificate": ["--draws", "8", "--utility-draws", "1", "--no-rerun", "--limit", "2"],
    "analyze spectrum": ["--no-rerun"],
}
"""Options that make a command's work small; the later of two counts."""
FEWER = {
    r"(relearn:data=benign)(?!,steps)": r"\1,steps=2,seeds=1",
    r"\bsteps=\d+": "steps=2",
    r"\bseeds=\d+": "seeds=1",
    r"\bsearch(=\d+|$)": "search=2",
}


class Begun(BaseException):
    """A command has come to its work."""


def leaf(words: Sequence[str]) -> tuple[str, Any]:
    """The name of the subcommand that words are of, and the subcommand; a word that is none is an error."""
    command, name = typer.main.get_command(app), []
    for word in words:
        if not (known := subcommands(command)) or word.startswith("-"):
            break
        assert word in known, f"letgo {' '.join(words)}: no command {word!r}"
        command = known[word]
        name.append(word)
    return " ".join(name), command


def subcommands(command: Any) -> dict[str, Any]:
    return getattr(command, "commands", {})


def filled(command: Command) -> list[str]:
    """The words of a command with what stands in for those of the page."""
    words = [STAND_INS.get(word, word) for word in command.words if word != "…"]
    if "…" in command.words:
        for option, values in REST.items():
            if option not in words and not (option == "--forget" and "--benchmark" in words):
                words += [option, *values]
    return words


def test_the_pages_have_commands():
    assert sum(map(len, COMMANDS.values())) > 120
    used = {leaf(command.words)[0] for found in COMMANDS.values() for command in found}
    known = subcommands(typer.main.get_command(app))
    assert {name for name, command in known.items() if not subcommands(command)} <= used


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return made_once(tmp_path_factory, "doc-files", _write)


def _write(folder: Path) -> None:
    """The files that commands read before they begin."""
    forget, retain = (tiny.write_jsonl(folder / f"{n}.jsonl", getattr(tiny, n.upper())) for n in ("forget", "retain"))
    (folder / "ROWS").mkdir()
    shutil.copy(forget, folder / "ROWS")
    shutil.copy(retain, folder / "ROWS")
    base = {"model": "MODEL", "forget": forget.name, "retain": retain.name, "max_steps": 2, "use_cpu": True}
    for name, settings in {
        "run.yaml": base | {"output_dir": "from-yaml"},
        "OLD/config.yaml": base | {"output_dir": "OLD"},
        "grid.yaml": {"output_dir": "letgo-runs/sweep-tiny", "base": base, "grid": {"seed": [0, 1]}},
        ".hydra/overrides.yaml": ["trainer=NPO", "forget_split=forget10", "retain_split=retain90", f"{PATH}={MODEL}"],
        ".hydra/config.yaml": {
            "model": {"model_args": {"pretrained_model_name_or_path": MODEL}},
            "trainer": {"handler": "NPO", "args": {"learning_rate": 1e-5}, "method_args": {"beta": 0.1}},
            "data": {"forget": {"TOFU_QA_forget": {"handler": "QADataset"}}, "anchor": "forget"},
            "forget_split": "forget10",
            "retain_split": "retain90",
            "task_name": "npo",
            "mode": "unlearn",
        },
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(yaml.safe_dump(settings), encoding="utf-8")
    tofu = shaped.write_tofu(folder / "data" / "tofu")
    for table in ("forget01", "retain99", "forget01_perturbed"):
        shutil.copy(tofu / f"{table}.json", tofu / f"{table.replace('01', '10').replace('99', '90')}.json")
    shaped.write_muse(folder / "data" / "muse-news")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    own_things.write(folder)
    (folder / "mypackage").mkdir()
    (folder / "mypackage" / "attacks.py").write_text("from mine_own import shrink as shrink\n")
    (folder / "mypackage" / "optim.py").write_text(
        "from mine_own import Halving\n\n\nclass Mine(Halving):\n    def __init__(self, params, lr: float = 1e-3, *, "
        "gamma: float = 1.0):\n        super().__init__(params, lr / gamma)\n"
    )


PATH = "model.model_args.pretrained_model_name_or_path"
MODEL = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"


@pytest.fixture
def checked(letgo, written, tmp_path, monkeypatch):
    """Gives `checked(command)`: what is wrong with a command, as far as it shows before the command's work begins;
    None if nothing is."""

    # A module that is first imported while a stand-in is in place would keep it.
    for module in pkgutil.walk_packages(package.__path__, "letgo."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def begin(*_: Any, **__: Any) -> None:
        raise Begun

    shutil.copytree(written, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which letgo adds the folder for code beside it
    monkeypatch.setenv("LETGO_DATA", "data")
    for target in WORK:
        monkeypatch.setattr(target.replace(":", "."), begin)
    monkeypatch.setattr("letgo.runs.register.check_requests", lambda register, ids: None)

    def check(command: Command) -> str | None:
        try:
            code, _, err = letgo(*filled(command))
        except Begun:
            return None
        return f"{command}: {err}" if code else None

    return check


@pytest.mark.parametrize("page", COMMANDS)
def test_the_commands_of_a_page_are_right_as_far_as_their_work(page, checked):
    assert not [wrong for command in COMMANDS[page] if (wrong := checked(command))]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("letgo unlearn run.yaml --stepz 3", "No such option"),
        ("letgo unlearn run.yaml --optimizer fozo:zo_rate=1", "no setting 'zo_rate'"),
        ("letgo unlearn … --objective npo_gdr:betta=1", "no setting 'betta'"),
        ("letgo attack RUN --attack quantize:bitz=4", "no setting 'bitz'"),
        ('letgo attack RUN --attack "relearn:steps=2 then requantise"', "unknown attack 'requantise'"),
        ("letgo eval MODEL --benchmark tofu:splt=forget10", "no setting 'splt'"),
        ("letgo export RUN --format q4_k_x -o OUT", "q4_k_x"),
        ("letgo check RUN --require 'forgoten and'", "forgoten"),
        ("letgo audit --model B --base A -o OUT", "nothing to look for"),
        ("letgo plan run.yaml [--devices 8 --stratagy ddp|fsdp2]", "No such option"),
        ("letgo list optimisers", "unknown kind"),
        ("letgo attack", "Missing argument"),
    ],
)
def test_a_broken_command_is_seen(broken, message, checked):
    page = f"# A page\n\n    letgo list attacks\n    {broken}    # a remark\n"
    right, *wrong = commands_of("page.md", page)
    assert checked(right) is None
    assert message in str([checked(command) for command in wrong])


def test_a_page_is_read_as_it_is_written():
    page = """
        letgo plan run.yaml [--measure | --flops 2e12] \\
            [--strategy ddp|fsdp2]   # it's a remark
    ```sh
    LETGO_DATA=data letgo eval MODEL --benchmark mmlu > scores.txt
    torchrun --nproc_per_node 8 -m letgo unlearn run.yaml
    ```
    ```yaml
    env: {GATE: 'survived("x") or retain > 1'}
    steps:
      - run: >-
          letgo check audit
          --require "$GATE" || true
    ```
    """.replace("\n    ", "\n")
    assert [(command.line, " ".join(command.words)) for command in commands_of("page.md", page)] == [
        (12, 'check audit --require survived("x") or retain > 1'),
        (2, "plan run.yaml"),
        (2, "plan run.yaml --measure --strategy ddp"),
        (2, "plan run.yaml --flops 2e12 --strategy fsdp2"),
        (5, "eval MODEL --benchmark mmlu"),
        (6, "unlearn run.yaml"),
    ]


def unknown_options(words: list[str]) -> list[str]:
    """The options among the words of a command that it has not."""
    _, command = leaf(words)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return [word for word in words if re.match(r"--?[a-z]", word) and word not in known]


@pytest.mark.parametrize("page", [page for page in TEXTS if page.endswith(".md")])
def test_the_commands_in_sentences_have_the_options_that_are_named(page):
    for words in mentions_of(TEXTS[page]):
        assert not unknown_options(words), words


def test_a_wrong_option_in_a_sentence_is_seen():
    [right, wrong, none] = mentions_of("Say `letgo eval -o`, not `letgo eval\n--outpt`; nor `letgo evaluate`.")
    assert (unknown_options(right), unknown_options(wrong)) == ([], ["--outpt"])
    with pytest.raises(AssertionError, match="no command 'evaluate'"):
        unknown_options(none)


@pytest.fixture(scope="module")
def made(tmp_path_factory, written):
    return made_once(tmp_path_factory, "doc-models", lambda folder: _make(folder, written))


ORIGINALS = ("MODEL", "A", "ANY", "BASE", "base", "ORIGINAL", "ORIGINAL-gptq", "RETAIN_MODEL", "T", "DIR_OR_ID")
CHANGED = ("B", "model", "SIBLING", "SMALLER")
RUNS = ("RUN", "run", "OLD", "RUN-gptq")
KEYS = ("openssl ecparam -name prime256v1 -genkey -noout -out key.pem", "openssl ec -in key.pem -pubout -out key.pub")


TRIES = (Try("quantize:bits=8", "quick"), Try("relearn:steps=2,seeds=1", "standard"))


def _make(folder: Path, written: Path) -> None:
    """The files and the models and runs that commands name. The original is on the grid of a 4-bit format, and
    its tokenizer is one that GGUF files can hold."""
    shutil.copytree(written, folder, symlinks=True, dirs_exist_ok=True)
    tokenizer = load_tokenizer("biographies")
    model = tiny.make_model(vocab_size=len(tokenizer), max_position_embeddings=512)
    with torch.no_grad():
        for layer in (each for each in model.modules() if isinstance(each, torch.nn.Linear)):
            if layer is not model.lm_head:
                grid = make_grid(layer.weight, bits=4, group_size=32)
                layer.weight.copy_(grid.values(grid.index(layer.weight)))
    tiny.save(folder / "MODEL", model, tokenizer)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.01)
    tiny.save(folder / "B", model, tokenizer)
    with pytest.MonkeyPatch.context() as patched:
        few_texts(patched)
        run = package.unlearn(
            **tiny.own_files(folder, folder / "MODEL", max_steps=2, per_device_train_batch_size=2),
            attacks=["quantize:bits=8", "relearn:steps=2,learning_rate=1e-3,holdout=0.5"],
        )
    for names, source in ((ORIGINALS, folder / "MODEL"), (CHANGED, folder / "B"), (RUNS, run.directory)):
        for name in (name for name in names if name not in source.parts):
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
    for name in ("OLD", "RUN-gptq"):
        (folder / name / "result.json").unlink()


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A folder with all that commands name, in which they run. An audit makes two attacks."""
    few_texts(monkeypatch)
    monkeypatch.setattr("letgo.auditing.suites.TRIES", TRIES)
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which letgo adds the folder for code beside it
    monkeypatch.setenv("LETGO_DATA", "data")
    return tmp_path


def test_what_is_not_run_is_there():
    lines = [" ".join(command.words) for found in COMMANDS.values() for command in found]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in lines), pattern


RUN = {
    page: run
    for page, found in COMMANDS.items()
    if page not in ELSEWHERE
    and (run := [each for each in found if not any(re.search(not_run, " ".join(each.words)) for not_run in NOT_RUN)])
}


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run(page, letgo, place):
    prepare(page, place)
    for number, command in enumerate(RUN[page]):
        name, _ = leaf(command.words)
        words = [reduce(lambda word, few: re.sub(*few, word), FEWER.items(), word) for word in filled(command)]
        words += SMALLER.get(name, [])
        if name == "unlearn" and not {"--output", "-o"} & {*words}:
            words += ["--output", f"run-{number}"]
        if name in ("unlearn", "eval", "export", "audit"):
            for at in (place / after for word, after in pairwise(words) if word in ("--output", "-o")):
                shutil.rmtree(at, ignore_errors=True)
        code, _, err = letgo(*words)
        assert code in ((0, 3) if "--require" in words else (0,)), f"{command}\n{err}"


def prepare(page: str, place: Path) -> None:
    """What the commands of one page need beside the rest."""
    for name, rows in files_of(TEXTS[page]).items():
        (place / name).write_text(rows, encoding="utf-8")
    if page == "docs/requests.md":
        rows = [
            {"question": f"Where was {who} born?", "answer": "Ulm", "group": who} for who in ("Ada Noll", "Bo Quill")
        ]
        tiny.write_jsonl(place / "people.jsonl", [*rows, rows[0] | {"group": "Lovenk Wembasko"}])
        (place / "run.yaml").write_text("objective: npo_gdr\n", encoding="utf-8")
    if page == "docs/open-unlearning.md":
        shutil.rmtree(place / "RUN")
        benchmark = {"benchmark": "tofu:split=forget10", "eval_limit": 4}
        package.unlearn(model="MODEL", **benchmark, max_steps=1, use_cpu=True, output_dir="RUN")
    if page in ("README.md", "docs/attestation.md"):
        assert all(key in TEXTS["docs/attestation.md"] for key in KEYS)
        for key in KEYS:
            subprocess.run(shlex.split(key), cwd=place, check=True, capture_output=True)


PYTHON = [
    pytest.param(block, id=f"{page}-{number}")
    for page, text in TEXTS.items()
    if page.endswith(".md")
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
]


def there(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (AttributeError, ImportError):
        return None


def wrong_calls(block: str) -> list[str]:
    """Names of letgo that a block uses and that are not there, and calls of them that don't fit their signatures."""
    tree, names, wrong = ast.parse(block), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.asname or each.name.partition(".")[0]: each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("letgo"):
            # Names that are imported and not used here.
            wrong += [f"no {node.module}.{each.name}" for each in node.names if not there(f"{node.module}.{each.name}")]
        called = node.func if isinstance(node, ast.Call) else node
        if not isinstance(called, (ast.Name, ast.Attribute)):
            continue
        first, *others = ast.unparse(called).split(".")
        path = ".".join([names.get(first, first), *others])
        if first not in names or not path.startswith("letgo."):
            continue
        if (thing := there(path)) is None:
            wrong.append(f"no {path}")
        elif isinstance(node, ast.Call) and not any(isinstance(each, ast.Starred) for each in node.args):
            keywords = {each.arg: None for each in node.keywords if each.arg}
            whole = all(each.arg for each in node.keywords)
            signature = inspect.signature(thing)
            try:
                (signature.bind if whole else signature.bind_partial)(*node.args, **keywords)
            except TypeError as error:
                wrong.append(f"{path}: {error}")
    return wrong


@pytest.mark.parametrize("block", PYTHON)
def test_python_calls_what_there_is(block):
    assert not wrong_calls(block)


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        ("import letgo\n\nletgo.unlern(model='m')", "no letgo.unlern"),
        ("import letgo\n\nletgo.write_report(['run'], 'r.html', outptu='x')", "'outptu'"),
        ("from letgo.optim import FOZA", "no letgo.optim.FOZA"),
        ("from letgo.optim import FOZO as F\n\nF(p, zo_rate=1)", "'zo_rate'"),
    ],
)
def test_a_wrong_call_is_seen(block, wrong):
    assert wrong in str(wrong_calls(block))


@pytest.mark.parametrize("page", [page for page in TEXTS if page.endswith(".md")])
def test_the_scripts_and_targets_that_a_page_names_are_there(page):
    assert not missing(TEXTS[page])


def missing(text: str) -> list[str]:
    """Of the repository's scripts, their options, make's targets and the extras: what a page names and is not there."""
    lines = re.findall(r"^ {4}(?:\w+=\S+ |sbatch )*(?:python )?(-m \S+|\S+/\S+\.(?:py|sh))([^#\n]*)", text, flags=re.M)
    wrong = []
    for script, options in lines:
        path = ROOT / (f"{script[3:].replace('.', '/')}.py" if script.startswith("-m ") else script)
        source = path.read_text(encoding="utf-8") if path.is_file() else None
        wrong += [script] if source is None else []
        if path.suffix == ".py" and source is not None:
            wrong += [each for each in re.findall(r"--[a-z-]+", options) if f'"{each}"' not in source]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    wrong += [f"make {name}" for name in re.findall(r"(?:^ {4}|`)make ([\w-]+)", text, re.M) if name not in targets]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [name for some in re.findall(r"pip install '[^']*\[([\w,]+)\]'", text) for name in some.split(",")]
    return wrong + [f"extra {name}" for name in named if name not in extras]


def test_a_missing_script_is_seen():
    page = """
    python perf/intervals.py [--quick|--quik]
    python -m research.scaling.nothing run.yaml
    PARTS=8 recipes/launch/slurm-aray.sh grid.yaml
    make tset
    pip install '.[ray,rays]'
"""
    scripts = ["--quik", "-m research.scaling.nothing", "recipes/launch/slurm-aray.sh"]
    assert missing(page) == [*scripts, "make tset", "extra rays"]
