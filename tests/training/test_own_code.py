"""A user's own optimizer, objective, attack, benchmark and metric in one run: recorded with the digest of their source,
and held to it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import letgo as library
from letgo.core import own
from letgo.core.errors import UserError
from letgo.runs.results import read_result
from letgo.training import unlearn as page
from letgo.training.config import make_config
from tests import own_things, tiny
from tests.training.test_going_on import killed_at


def forget_modules(before):
    for name in set(sys.modules) - before:
        if name.startswith("mine_"):
            del sys.modules[name]
    own._code.cache_clear()


@pytest.fixture
def job(tmp_path, model_directory, monkeypatch):
    """A run with one of each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules) - {"mine_own"}  # of another test
    forget_modules(before)
    own_things.write(tmp_path)
    files = tiny.own_files(tmp_path, model_directory, learning_rate=1e-2, max_steps=3, per_device_train_batch_size=2)
    rows = f"forget={files.pop('forget')},retain={files.pop('retain')}"
    yield files | {
        "optimizer": "mine_own:Halving",
        "objective": "mine_own.ascend",
        "objective_args": {"scale": 2.0},
        "retain_loss": "ce",
        "benchmark": f"mine_own.pairs:{rows}",
        "metrics": ["mine_own.letters:of=answer"],
        "attacks": ["mine_own.shrink:share=0.25"],
        "save_steps": 1,
    }
    forget_modules(before)


NAMES = {"Halving": "optimizer", "ascend": "objective", "pairs": "benchmark", "letters": "metric", "shrink": "attack"}


def test_a_run_of_ones_own_is_recorded_with_the_digest_of_its_source(job, tmp_path, letgo):
    run = library.unlearn(**job)
    result = read_result(run.directory)
    assert result == run.result
    digest = hashlib.sha256((tmp_path / "mine_own.py").read_bytes()).hexdigest()
    assert {name: (code.kind, code.target, code.sha256, code.package) for name, code in result.code.items()} == {
        f"mine_own.{name}": (kind, f"mine_own:{name}", digest, "") for name, kind in NAMES.items()
    }
    assert result.config["optimizer"] == "mine_own.Halving"
    assert result.config["scored"]["benchmark"] == "mine_own.pairs"
    lengths = [len(row["answer"]) for row in tiny.FORGET]
    assert result.after["forget_letters"].value == pytest.approx(sum(lengths) / len(lengths))
    assert result.before["forget_probability"].value > result.after["forget_probability"].value, "it ascended"
    [attack] = result.attacks
    assert (attack.label, attack.did["share"]) == ("mine_own.shrink:share=0.25", 0.25)
    assert attack.metrics["forget_letters"].value == result.after["forget_letters"].value
    [first, *_] = [json.loads(line) for line in (run.directory / "samples.jsonl").read_text().splitlines()]
    assert first["scores"]["letters"] == len(first["answer"])

    # Attacked again: the benchmark stands in the record alone, which does not suffice.
    code, _, err = letgo("attack", run.directory, "--attack", "quantize:bits=2")
    assert code == 2
    assert "the record names the benchmark 'mine_own.pairs'" in err
    code, _, err = letgo("attack", run.directory, "--attack", "quantize:bits=2", "--trust-remote-code", "-q")
    assert code == 0, err
    assert len(read_result(run.directory).attacks) == 2
    own_things.write(tmp_path, more="# changed\n")
    forget_modules(set())
    code, _, err = letgo("attack", run.directory, "--attack", "quantize:bits=3", "--trust-remote-code", "-q")
    assert code == 2
    now = hashlib.sha256((tmp_path / "mine_own.py").read_bytes()).hexdigest()
    assert digest in err
    assert now in err


def test_a_one_shot_method_of_ones_own(job, tmp_path, letgo):
    for name in ("optimizer", "retain_loss", "attacks", "metrics", "save_steps"):
        del job[name]
    job |= {"objective": "mine_own.wither", "objective_args": {"share": 0.25}}
    run = library.unlearn(**job)
    digest = hashlib.sha256((tmp_path / "mine_own.py").read_bytes()).hexdigest()
    code = run.result.code["mine_own.wither"]
    assert (code.kind, code.target, code.sha256) == ("objective", "mine_own:wither", digest)
    assert f"withered for {len(tiny.FORGET)} rows" in run.result.notes
    before, after = (load_file(Path(at) / "model.safetensors") for at in (job["model"], run.directory))
    assert all(torch.equal(after[name], 0.25 * before[name]) for name in after)
    shutil.rmtree(run.directory)
    for changed, message in (
        ({"objective_args": {"shar": 1.0}}, r"no setting 'shar'; did you mean 'share'"),
        ({"objective_args": {"share": "much"}}, "share must be a number"),
        ({"evaluate_every": 2}, "changes the weights in one shot"),
        ({"dtype": "float16"}, "dtype: float16 with mine_own.wither"),
    ):
        with pytest.raises(UserError, match=message):
            library.unlearn(**job | changed)
    with pytest.raises(UserError, match="a one-shot method of your own"):
        library.plan(make_config(job))
    code, out, err = letgo("list", "objectives", "mine_own.wither", "--json")
    assert code == 0, err
    assert [setting["name"] for setting in json.loads(out)[0]["settings"]] == ["share"]


def test_a_run_is_not_resumed_with_another_source(job, tmp_path, monkeypatch):
    with killed_at(monkeypatch, (page, "save")):
        library.unlearn(**job)
    old = (tmp_path / "mine_own.py").read_bytes()
    own_things.write(tmp_path, more="# changed\n")
    forget_modules(set())
    with pytest.raises(UserError, match="its source is not the one that the record was made with") as refused:
        library.unlearn(**job, resume=True)
    assert hashlib.sha256(old).hexdigest() in str(refused.value)
    assert hashlib.sha256((tmp_path / "mine_own.py").read_bytes()).hexdigest() in str(refused.value)
    (tmp_path / "mine_own.py").write_bytes(old)
    forget_modules(set())
    assert library.unlearn(**job, resume=True).result.status in ("finished", "collapsed")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": "mine_own.Halvin"}, r"mine_own has no 'Halvin'; did you mean 'Halving'\?"),
        ({"optimizer": "mine_own.Halving:flor=1"}, "no setting 'flor'; did you mean 'floor'"),
        ({"optimizer": "mine_own.ascend"}, "no setting 'lr'"),
        ({"optimizer": "collections.OrderedDict"}, "is a class, but no torch.optim.Optimizer"),
        ({"optimizer": "torch.optim.SparseAdam"}, "can't step a dense matrix"),
        ({"objective": "mine_own.letters"}, r"must take the model and then the parts of a batch.*takes \(sample, of\)"),
        ({"objective_args": {"scale": "much"}}, "scale must be a number"),
        ({"attacks": ["mine_own.ascend"]}, r"must take \(victim, \*, seed, …\)"),
        ({"attacks": ["mine_own.shrink:shar=1"]}, r"no setting 'shar'; did you mean 'share'\?"),
        ({"benchmark": "mine_own.letters:sample=1"}, "benchmark 'mine_own.letters': AttributeError: 'int' object has"),
        ({"benchmark": "collections.Counter"}, "which is no letgo Benchmark"),
        ({"metrics": ["mine_own.ascend"]}, r"must take \(sample, …\)"),
        ({"metrics": ["rouge"]}, "metric 'rouge' is letgo's"),
        ({"metrics": ["mine_own.letters", "mine_own.letters:of=question"]}, "there is another metric 'letters'"),
        ({"optimizer": "torch.optim.Adam", "dtype": "float16"}, "dtype: float16 with torch.optim.Adam"),
    ],
)
def test_a_mistake_is_told_before_the_model_is_loaded(job, changed, message, monkeypatch):
    monkeypatch.setattr(page, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=message):
        library.unlearn(**job | changed)


def test_evaluate_takes_metrics_of_ones_own(job, letgo, tmp_path):
    code, out, err = letgo(
        "eval", job["model"], "--benchmark", job["benchmark"], "--metric", "mine_own:letters", "--json", "-q"
    )
    assert code == 2, "a module without a dot is written with one"
    assert "unknown metric 'mine_own'" in err
    code, out, err = letgo(
        "eval", job["model"], "--benchmark", job["benchmark"], "--metric", "mine_own.letters", "--json", "-q"
    )
    assert code == 0, err
    [result] = json.loads(out).values()
    assert result["after"]["retain_letters"]["n"] == len(tiny.RETAIN)
    assert set(result["code"]) == {"mine_own.pairs", "mine_own.letters"}
