"""A real server: llama.cpp's own (from the package xllamacpp), which serves the shipped model from a GGUF file of the
same float32 weights. It computes attention over a cache in float16: that is the tolerance."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from letgo import audit
from letgo.auditing.suites import Try
from letgo.benchmarks.engine.evaluate import evaluate
from letgo.models.gguf_file import GgufFile, names_of
from letgo.models.load import load_model, load_tokenizer
from letgo.scoring.scoring import Query, generate, score
from letgo.scoring.server.calibration import LARGEST, MEAN
from letgo.scoring.server.served import connect

pytest.importorskip("xllamacpp", reason="the package that brings llama.cpp's server is not installed")

LOGP, FIGURE = 0.05, 0.02
"""How far a token's log-probability (nats), and a benchmark's figure, may be from torch's."""
SERVE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = sys.argv[1], {sys.argv[2]}
params.n_parallel, params.n_ctx, params.n_gpu_layers = 4, 2048, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.hostnames, params.port = ["127.0.0.1"], 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def write_gguf(name, path):
    """A model's float32 weights as a GGUF file."""
    model, tokenizer = load_model(name), load_tokenizer(name)
    weights, names = model.state_dict(), names_of(model.config)
    called = names.of(weights)
    shapes = {called[key]: (tuple(weights[key].shape), "F32") for key in called}
    file = GgufFile(path, model.config, tokenizer, names, shapes, mix="F32")
    file.begin()
    for key in called:
        file.add(names.in_file(called[key], np.asarray(weights[key])))
    file.close()


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    folder, started = tmp_path_factory.mktemp("llama-cpp"), []

    def start(name):
        write_gguf(name, folder / f"{name}.gguf")
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(folder / f"{name}.gguf"), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        started.append(process)
        return next(line.strip() for line in process.stdout if line.startswith("http"))

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def url(serve):
    return serve("biographies")


def test_it_scores_and_writes_as_torch_does(url):
    model, tokenizer, served = (
        load_model("biographies"),
        load_tokenizer("biographies"),
        connect(url, tokenizer="biographies"),
    )
    assert served.engine["server"] == "llama.cpp"
    assert served.engine["scores_by"] == "forced"
    prompt = tokenizer("Question: Where was Ada born?\nAnswer:")["input_ids"]
    answer = tokenizer(" In the old town of Paris, 1987.", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    queries = [Query(prompt, [answer, [*answer, end], [end], answer[:1]]), Query(prompt[:1], [prompt[1:]])]
    for mine, other in zip(score(model, queries, matches=True), score(served, queries, matches=True), strict=True):
        for a, b in zip(mine, other, strict=True):
            assert float((a.logps - b.logps).abs().max()) < LOGP
            assert a.matches.tolist() == b.matches.tolist()
    prompts = [prompt, prompt[:5]]
    answers = [generate(m, tokenizer, prompts, max_new_tokens=10) for m in (model, served)]
    assert [a.text for [a] in answers[0]] == [a.text for [a] in answers[1]]


def test_a_benchmark_has_the_same_figures(url):
    served = connect(url, tokenizer="biographies")
    [mine] = evaluate("biographies", ["biographies"], limit=3).values()
    [other] = evaluate(served, ["biographies"], limit=3, weights="biographies").values()
    assert other.after.keys() == mine.after.keys()
    for name, metric in mine.after.items():
        assert other.after[name].value == pytest.approx(metric.value, abs=FIGURE), name
    calibration = other.config["calibration"]
    assert calibration["items"] == 3 * 5, "all: forget and retain questions; general, forget and holdout texts"
    assert calibration["mean"] < MEAN
    assert calibration["largest"] < LARGEST
    by_text = connect(url)
    [texts] = evaluate(by_text, ["biographies"], limit=3, template="plain", weights="biographies").values()
    assert texts.after.keys() == {"forget_rouge", "retain_rouge", "general_degenerate"}
    assert texts.after["forget_rouge"].value == pytest.approx(mine.after["forget_rouge"].value)
    assert texts.config["calibration"]["equal"] == 1.0


def test_an_audit_has_the_same_figures(url, serve, tmp_path, monkeypatch):
    monkeypatch.setattr("letgo.auditing.suites.TRIES", (Try("paraphrase", "quick"), Try("prefill", "quick")))
    unlearned, original = (
        connect(serve("biographies-retrained"), tokenizer="biographies"),
        connect(url, tokenizer="biographies"),
    )
    asked = {"benchmark": "biographies", "limit": 2, "suite": "quick"}
    other = audit(unlearned, base=original, weights="biographies-retrained", output=tmp_path / "served", **asked)
    mine = audit("biographies-retrained", base="biographies", output=tmp_path / "torch", **asked)
    assert other.config["calibration"]["largest"] < LARGEST
    assert mine.before["forget_probability"].value > 0.9 > mine.after["forget_probability"].value
    assert {attack.label for attack in other.attacks} == {attack.label for attack in mine.attacks}
    theirs = {attack.label: attack.metrics for attack in other.attacks}
    pairs = [(mine.before, other.before), (mine.after, other.after)]
    for ours, served in [*pairs, *((attack.metrics, theirs[attack.label]) for attack in mine.attacks)]:
        assert served.keys() == ours.keys()
        for name, metric in ours.items():
            assert served[name].value == pytest.approx(metric.value, abs=FIGURE, rel=FIGURE), name
