"""`letgo eval --server`: the figures of the weights, what each level leaves out, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.evaluate import PARTIAL_FILE, evaluate
from letgo.benchmarks.engine.items import Text
from letgo.core.errors import UserError, WorldError
from letgo.models.load import load_model, load_tokenizer
from letgo.runs.results import read_result
from letgo.scoring.scoring import Query
from letgo.scoring.server.calibration import calibrate
from letgo.scoring.server.client import Client
from letgo.scoring.server.probe import probe
from letgo.scoring.server.served import Served, connect
from tests import shaped, tiny
from tests.servers import little_prose as little_prose
from tests.servers import serving

pytestmark = pytest.mark.usefixtures("little_prose")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    rows = {name: tiny.write_jsonl(folder / f"{name}.jsonl", rows) for name, rows in
            (("forget", tiny.FORGET), ("retain", tiny.RETAIN))}  # fmt: skip
    return f"rows:forget={rows['forget']},retain={rows['retain']}"


@pytest.fixture
def server(model_directory):
    with serving(load_model(model_directory), load_tokenizer(model_directory)) as state:
        yield state


def test_the_figures_are_those_of_the_weights(letgo, server, model_directory, data, tmp_path):
    [weights] = evaluate(model_directory, [data]).values()
    words = ["eval", "tiny", "--server", server.url, "--tokenizer", model_directory, "--benchmark", data]
    code, out, err = letgo(*words, "--weights", model_directory, "-o", tmp_path / "out", "-q")
    assert code == 0, err
    assert "level 1" in out
    assert "calibration: 10 items" in out
    served = read_result(tmp_path / "out")
    assert served.after.keys() == weights.after.keys()
    for name, metric in weights.after.items():
        assert served.after[name].value == pytest.approx(metric.value, rel=1e-4, abs=1e-5), name
    assert served.headlines == weights.headlines
    calibration = served.config["calibration"]
    assert (calibration["items"], calibration["weights"]) == (10, str(model_directory))
    assert calibration["largest"] < 1e-3
    assert 0 < calibration["mean"] <= calibration["largest"]
    assert served.config["model"] == f"{server.url}#tiny"
    assert served.config["engine"]["scores_by"] == "prompt_logprobs"


def test_a_server_of_other_weights_is_seen_in_the_calibration(server, tmp_path, data):
    other = tiny.save(tmp_path, tiny.make_model(seed=1), tiny.make_tokenizer())
    [result] = evaluate(connect(server.url, tokenizer=str(other)), [data], weights=str(other)).values()
    assert result.config["calibration"]["mean"] > 0.05
    assert any("is it another model" in note for note in result.notes)


def test_thirty_two_items_are_compared(server, model_directory):
    served = connect(server.url, tokenizer=str(model_directory))
    queries = [Query([1, 4 + n % 30], [[5 + n % 20]]) for n in range(80)]
    found = calibrate(served, str(model_directory), queries, [], "float32")
    assert (found["items"], found["tokens"]) == (32, 32)
    assert max(found["mean"], found["largest"]) < 1e-4


def test_texts_alone_and_messages_alone(letgo, server, data):
    [texts] = evaluate(connect(server.url), [data], template="plain").values()
    assert set(texts.after) == {"forget_rouge", "retain_rouge", "general_degenerate"}
    assert set(texts.headlines) == {"forget_rouge"}
    assert any("level 2" in note for note in texts.notes)
    server.lacks = {"completions"}
    [chat] = evaluate(connect(server.url), [data], template="chat").values()
    assert set(chat.after) == {"forget_rouge", "retain_rouge"}
    code, _, err = letgo("eval", "--server", server.url, "--benchmark", data, "--template", "plain")
    assert code == 2
    assert "log-probabilities of given answers and texts that are continued (or, of questions, --template chat)" in err


def test_benchmarks_of_log_probabilities_are_refused_at_once(server, data, tmp_path):
    folder = shaped.write_tofu(tmp_path / "tofu")
    tofu = f"tofu:split=forget01,length=30,general=false,limit=1,data={folder}"
    served = connect(server.url)
    [result] = evaluate(served, [tofu]).values()
    assert set(result.after) >= {"forget_rouge", "retain_rouge"}
    assert not any("probability" in name for name in result.after)
    before = server.asked["/v1/completions"]
    members = [Text("forget", "a", "a", "old red river stone"), Text("holdout", "b", "b", "new blue river stone")]
    with pytest.raises(UserError, match="it needs log-probabilities of given answers"):
        evaluate(served, [replace(create_benchmark(data), items=[], texts=members)])
    assert server.asked["/v1/completions"] == before


def test_a_reference_of_another_engine_is_refused(server, model_directory, tmp_path):
    tofu = f"tofu:split=forget01,length=60,general=false,limit=1,data={shaped.write_tofu(tmp_path / 'tofu')}"
    served = connect(server.url, tokenizer=str(model_directory))
    [result] = evaluate(served, [tofu], output=tmp_path / "retain").values()
    assert not any("mia" in name for name in result.after), "Min-K++ is left out"
    [compared] = evaluate(served, [f"{tofu},retain={tmp_path / 'retain'}"]).values()
    assert compared.references["retain"] == result.after
    for model, message in (
        (str(model_directory), r"another engine \(vllm\) than what is scored now \(torch\)"),
        (connect(server.url), "compared by log-probabilities"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(model, [f"{tofu},retain={tmp_path / 'retain'}"])


def test_a_broken_off_evaluation_goes_on(server, model_directory, data, tmp_path):
    tokenizer = load_tokenizer(model_directory)

    def served():
        return Served(probe(Client(server.url, tries=1, pause=0.001, at_once=1), None, tokenizer), tokenizer)

    first = served()
    server.faults = [*[""] * 6, "500"]
    with pytest.raises(WorldError, match="--resume"):
        evaluate(first, [data], output=tmp_path / "out")
    assert (tmp_path / "out" / PARTIAL_FILE).read_text().count("\n") == 7
    second, before = served(), server.asked["/v1/completions"]
    [result] = evaluate(second, [data], output=tmp_path / "out", resume=True).values()
    asked = server.asked["/v1/completions"] - before
    [whole] = evaluate(second, [data]).values()
    assert result.after == whole.after
    assert server.asked["/v1/completions"] - before == 2 * asked + 6
    assert not (tmp_path / "out" / PARTIAL_FILE).exists()


def test_flags_that_do_not_fit(letgo, model_directory, data):
    for words, message in (
        (["eval", "--benchmark", data], "name a model, or a server"),
        (["eval", model_directory, "--benchmark", data, "--key-env", "X"], "--key-env is of a server"),
        (["eval", model_directory, "--benchmark", data, "--weights", model_directory], "name the server"),
    ):
        code, out, err = letgo(*words)
        assert (code, out) == (2, "")
        assert message in err
    code, out, _ = letgo("eval", "--help")
    assert code == 0
    assert json.dumps("--server")[1:-1] in out
