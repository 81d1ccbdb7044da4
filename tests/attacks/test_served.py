"""Attacks on models that are only served: the same judgement as of their weights, of one engine, gone on with after a
failure; and refused, before anything is asked, where they can't be made."""

from __future__ import annotations

import json
import shlex

import pytest

import letgo
from letgo.benchmarks import create_benchmark
from letgo.core.errors import UserError, WorldError
from letgo.models.load import load_model, load_tokenizer
from letgo.report.audited import command
from letgo.runs.results import read_result
from letgo.scoring.server.calibration import MEAN, in_words
from letgo.scoring.server.client import Client
from letgo.scoring.server.probe import probe
from letgo.scoring.server.served import Served
from tests.attacks.conftest import translations
from tests.servers import little_prose as little_prose
from tests.servers import serving

pytestmark = pytest.mark.usefixtures("little_prose")

PROMPTS = ["paraphrase", "in_context:seeds=1", "prefill:text=it is", "multi_turn:rounds=1", "translate:path=WORDS"]


@pytest.fixture
def servers(saved):
    tokenizer = load_tokenizer(str(saved.original))
    with (
        serving(load_model(saved.forms["full"]), tokenizer, name="forgot") as unlearned,
        serving(load_model(saved.original), tokenizer, name="knew") as original,
    ):
        yield unlearned, original


@pytest.fixture
def connected(saved, servers):
    def connect(*, tokenizer=True, **settings):
        given = load_tokenizer(str(saved.original)) if tokenizer else None
        clients = [Client(state.url, **{"pause": 0.001, "tries": 2, **settings}) for state in servers]
        return [Served(probe(client, None, given), given) for client in clients]

    return connect


def test_attacks_by_questions_are_judged_as_on_the_weights(saved, connected, tmp_path):
    unlearned, original = connected()
    words = translations(tmp_path, create_benchmark(saved.benchmark))
    prompts = [attack.replace("WORDS", words) for attack in PROMPTS]
    given = {"benchmark": saved.benchmark, "limit": 4}
    weights = letgo.attack(saved.forms["full"], prompts, original=str(saved.original), output=tmp_path / "w", **given)
    served = letgo.attack(unlearned, prompts, original=original, output=tmp_path / "s", **given)
    for name, metric in weights.after.items():
        assert served.after[name].value == pytest.approx(metric.value, abs=1e-4), name
    assert [attack.label for attack in served.attacks] == [attack.label for attack in weights.attacks]
    for mine, other in zip(weights.attacks, served.attacks, strict=True):
        assert other.survived == mine.survived
        assert other.kept is None if mine.kept is None else other.kept == pytest.approx(mine.kept, abs=1e-3)
    record = read_result(tmp_path / "s").config
    assert (record["unlearned"], record["model"]) == (str(unlearned), str(original))
    assert record["engine"] == unlearned.engine
    assert record["dtype"] is None
    assert {path.name for path in (tmp_path / "s").iterdir()} >= {"result.json", "samples.jsonl", "README.md"}
    assert not list((tmp_path / "s").glob("*.partial.jsonl*")), "what was kept for a kill is gone at the end"


def test_drawn_answers_are_judged(saved, connected):
    unlearned, original = connected()
    result = letgo.attack(unlearned, ["sample:k=2"], benchmark=saved.benchmark, original=original, limit=2)
    assert result.attacks[0].did["answers"] == 4


def test_texts_alone_are_judged_by_rouge(saved, connected, servers):
    unlearned, original = connected(tokenizer=False)
    asked = {"benchmark": saved.benchmark, "original": original, "limit": 4}
    result = letgo.attack(unlearned, ["paraphrase", "prefill:text=it is"], template="plain", **asked)
    assert set(result.headlines) == {"forget_rouge"}
    assert result.before["forget_rouge"].value > 0.9 > result.after["forget_rouge"].value
    assert all("forget_rouge" in attack.metrics for attack in result.attacks)
    assert "forget_probability" not in result.after
    for state in servers:
        state.lacks = {"completions"}
    unlearned, original = connected(tokenizer=False)
    with pytest.raises(UserError, match="texts that it continues"):
        letgo.attack(unlearned, ["prefill"], **asked | {"original": original})
    result = letgo.attack(unlearned, ["instruct"], template="chat", **asked | {"original": original})
    assert set(result.headlines) == {"forget_rouge"}
    assert len(result.attacks[0].ways) == 5


def test_a_failure_is_gone_on_with_and_nothing_is_asked_twice(saved, connected, servers, tmp_path):
    asked = {"benchmark": saved.benchmark, "limit": 2, "output": tmp_path / "out"}
    unlearned, original = connected(at_once=1)
    whole = letgo.attack(unlearned, ["paraphrase"], original=original, benchmark=saved.benchmark, limit=2)
    needed = sum(state.asked["/v1/completions"] for state in servers)
    for state in servers:
        state.asked.clear()
    servers[0].faults = [*[""] * 10, *["500"] * 9]
    with pytest.raises(WorldError, match="what was finished is kept"):
        letgo.attack(unlearned, ["paraphrase"], original=original, **asked)
    servers[0].faults = []
    again = letgo.attack(unlearned, ["paraphrase"], original=original, **asked)
    assert again.attacks[0].kept == pytest.approx(whole.attacks[0].kept)
    # The probes of the first time, and the two tries that failed, are the difference.
    assert sum(state.asked["/v1/completions"] for state in servers) <= needed + 2


def test_what_cannot_be_asked_is_refused_before_anything_is(saved, connected, servers):
    unlearned, original = connected()
    asked = {"benchmark": saved.benchmark, "original": original}
    before = [sum(state.asked.values()) for state in servers]
    for spec in ("quantize:bits=4", "relearn", "suffix", "membership"):
        with pytest.raises(UserError, match=r"needs the model's weights\n  attacks that can: in_context"):
            letgo.attack(unlearned, [spec], **asked)
    for given in ({"dtype": "float32"}, {"shared_scores": "folder"}):
        with pytest.raises(UserError, match="is for models in memory"):
            letgo.attack(unlearned, ["paraphrase"], **asked, **given)
    with pytest.raises(UserError, match="give --original"):
        letgo.attack(unlearned, ["paraphrase"], benchmark=saved.benchmark)
    with pytest.raises(UserError, match="give --benchmark"):
        letgo.attack(unlearned, ["paraphrase"], original=original)
    with pytest.raises(UserError, match="as the original"):
        letgo.attack(unlearned, ["paraphrase"], **asked | {"original": unlearned})
    with pytest.raises(UserError, match="vllm and torch"):
        letgo.attack(unlearned, ["paraphrase"], **asked | {"original": str(saved.original)})
    with pytest.raises(UserError, match="torch and vllm"):
        letgo.attack(saved.forms["full"], ["paraphrase"], **asked)
    assert [sum(state.asked.values()) for state in servers] == before


def test_the_command(letgo, saved, servers, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    for state in servers:
        state.wants_key = "sk-very-secret"
    words = ["attack", "forgot", "--server", servers[0].url, "--original", "knew", "--original-server", servers[1].url]
    words += ["--tokenizer", saved.original, "--key-env", "MY_KEY", "--benchmark", saved.benchmark, "--limit", 2]
    code, out, err = letgo(*words, "--attack", "paraphrase", "-o", tmp_path / "out", "-q", "--json")
    assert code == 0, err
    assert json.loads(out)["config"]["engine"]["level"] == 1
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"sk-very-secret" not in written + out.encode() + err.encode()
    code, _, err = letgo(*words, "--retrained", "forgot", "--attack", "paraphrase")
    assert (code, "as the unlearned model and as the retrained model" in err) == (2, True)
    code, _, err = letgo("attack", "x", "--attack", "paraphrase", "--retrained", "y")
    assert (code, "--retrained is of a server" in err) == (2, True)
    code, _, err = letgo(*words, "--attack", "quantize")
    assert code == 2
    assert "needs the model's weights" in err
    code, _, err = letgo("attack", "x", "--attack", "paraphrase", "--tokenizer", "biographies")
    assert (code, "--tokenizer is of a server" in err) == (2, True)


def test_a_served_model_is_audited_by_questions_alone(saved, connected, tmp_path):
    unlearned, original = connected()
    given = {"benchmark": saved.benchmark, "limit": 4, "suite": "quick"}
    result = letgo.audit(unlearned, base=original, output=tmp_path / "audit", **given)
    assert {attack.label for attack in result.attacks} == {"paraphrase", "instruct", "prefill", "in_context"}
    left_out = {each.attack: each.reason for each in result.audit.not_tried}
    assert left_out["quantize_gguf:type=q8_0"] == "it needs the model's weights"
    assert (result.audit.kind, result.audit.weights) == ("served model", "")
    assert result.config["engine"] == unlearned.engine
    assert {path.name for path in (tmp_path / "audit").iterdir()} == {
        *("result.json", "samples.jsonl", "README.md", "report.html")
    }
    again = letgo.audit(unlearned, base=original, output=tmp_path / "audit", resume=True, **given)
    assert [attack.kept for attack in again.attacks] == [attack.kept for attack in result.attacks]
    # Without the model before unlearning there are levels.
    alone = letgo.audit(unlearned, output=tmp_path / "alone", **given)
    assert alone.judgement.word == "can't tell"
    assert alone.after["forget_probability"] == result.after["forget_probability"]


def test_a_served_model_is_compared_with_the_weights_at_hand(letgo, saved, servers, connected, tmp_path):
    words = ["--server", servers[0].url, "--tokenizer", saved.original, "--benchmark", saved.benchmark, "--limit", 4]
    full, audited = saved.forms["full"], tmp_path / "audit"
    words += ["--weights", full, "-q", "-o"]
    first = ["audit", "--model", "forgot", "--base", "knew", "--base-server", servers[1].url, "--suite", "quick"]
    code, _, err = letgo(*first, *words, audited)
    assert code == 0, err
    then = ["attack", "forgot", "--original", "knew", "--original-server", servers[1].url, "--attack", "paraphrase"]
    code, _, err = letgo(*then, *words, tmp_path / "attack", "--dtype", "float32")
    assert code == 0, err
    for record in (read_result(audited), read_result(tmp_path / "attack")):
        calibration = record.config["calibration"]
        assert (calibration["weights"], calibration["dtype"]) == (str(full), "float32")
        assert 0 < calibration["mean"] <= calibration["largest"] < 1e-3
        assert calibration["items"] > 8
        assert in_words(calibration) in record.notes
    page = (audited / "report.html").read_text()
    assert "the server against torch on" in page
    assert "served model, weights that letgo has not seen" in page
    again = shlex.split(command(read_result(audited), "again"))
    servers_of = ["--server", servers[0].url, "--base-server", servers[1].url, "--tokenizer", "DIR"]
    assert again[:6] == ["letgo", "audit", "--model", "forgot", "--base", "knew"]
    assert again[6:14] == [*servers_of, "--weights", str(full)]
    again[again.index("DIR")], again[-1] = str(saved.original), str(tmp_path / "again")
    assert letgo(*again[1:], "-q")[0] == 0
    assert read_result(tmp_path / "again").config == read_result(audited).config
    # It goes on with the same weights alone.
    assert letgo(*first, *words, audited, "--resume")[0] == 0
    code, _, err = letgo(*first, *[saved.original if word is full else word for word in words], audited, "--resume")
    assert code == 2
    assert "it differs in weights" in err


def test_a_calibration_is_added_to_the_attacks_on_a_served_model(saved, connected, tmp_path):
    unlearned, original = connected()
    given = {"benchmark": saved.benchmark, "original": original, "limit": 2, "output": tmp_path / "out"}
    assert "calibration" not in letgo.attack(unlearned, ["paraphrase"], **given).config
    other = letgo.attack(unlearned, ["multi_turn:rounds=1"], weights=str(saved.original), **given)
    assert [attack.label for attack in other.attacks] == ["paraphrase", "multi_turn:rounds=1"]
    assert other.config["calibration"]["mean"] > MEAN, "the server serves other weights"
    assert "is it another model" in other.notes[-1]
    again = letgo.attack(unlearned, ["paraphrase"], **given)
    assert (again.config, again.notes) == (other.config, other.notes)


def test_weights_at_hand_are_checked_before_anything_is_asked(saved, connected, servers, tmp_path):
    unlearned, original = connected()
    before = [sum(state.asked.values()) for state in servers]
    given = {"benchmark": saved.benchmark, "weights": "nowhere/at/all"}
    with pytest.raises(UserError, match="no such model: 'nowhere/at/all'"):
        letgo.attack(unlearned, ["paraphrase"], original=original, **given)
    with pytest.raises(UserError, match="no such model: 'nowhere/at/all'"):
        letgo.audit(unlearned, base=original, output=tmp_path / "audit", **given)
    for call in (letgo.attack, letgo.audit):
        names = {"original": "b"} if call is letgo.attack else {"base": "b", "output": tmp_path / "audit"}
        with pytest.raises(UserError, match="name the server"):
            call("a", *([["paraphrase"]] if call is letgo.attack else []), **names, **given)
    assert [sum(state.asked.values()) for state in servers] == before


def test_a_served_model_is_not_held_against_weights(saved, connected, tmp_path):
    unlearned, _ = connected()
    with pytest.raises(UserError, match="engine"):
        letgo.audit(unlearned, base=str(saved.original), benchmark=saved.benchmark, output=tmp_path / "audit")
    assert not (tmp_path / "audit").exists()
