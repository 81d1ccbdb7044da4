"""An audit of a model that anybody made: what it records, how it goes on after a kill, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from letgo import audit, check, export
from letgo.auditing import audit as page
from letgo.benchmarks.engine.base import run_works
from letgo.core.errors import LetgoError, UserError
from letgo.core.progress import Quiet
from letgo.runs.results import AUDIT, read_result
from letgo.scoring.resume_log import PARTIAL
from tests.report.runs import INJECTED

VOLATILE = {"run_id", "created", "seconds", "peak_memory_bytes"}


def steady(value):
    if isinstance(value, dict):
        return {key: steady(inner) for key, inner in value.items() if key not in VOLATILE}
    return [steady(inner) for inner in value] if isinstance(value, list) else value


def record(folder):
    return steady(json.loads((folder / "result.json").read_text()))


@pytest.mark.parametrize("form", ["loop", "sharded", "merged", "adapter"])
def test_a_model_in_another_tools_layout(short, made, saved, tmp_path, form):
    """A plain loop's model, its bf16 weights in shards, a merged adapter, and an adapter on its base."""
    models = {
        "loop": made.loop,
        "sharded": made.sharded,
        "merged": saved.forms["full"],
        "adapter": saved.forms["adapter"],
    }
    result = audit(models[form], **made.data, suite="quick", output=tmp_path / "audit")
    about = result.audit
    assert about.kind == ("adapter" if form == "adapter" else "directory")
    assert about.attacks == ["paraphrase", "quantize_packed:format=fp8"]
    assert [attack.label for attack in result.attacks] == about.attacks
    assert [each.attack for each in about.not_tried] == ["requantize"]
    assert "on no grid" in about.not_tried[0].reason
    names = [path.name for path in sorted(models[form].glob("*.safetensors"))]
    digests = {name: digest for name, digest in result.digests.model.items() if name in names}
    assert sorted(digests) == names
    assert (form == "sharded") == (len(names) > 2)
    assert all(len(digest) == 64 for digest in digests.values())
    assert about.weights != about.base_weights
    assert result.kind == "audit"
    assert result.run_id.startswith(AUDIT)
    assert result.config["model"] == str(made.base)
    assert result.before["forget_probability"].value > result.after["forget_probability"].value
    assert {path.name for path in (tmp_path / "audit").iterdir()} == {
        *("result.json", "samples.jsonl", "README.md", page.REPORT)
    }
    assert read_result(tmp_path / "audit") == result


def test_a_gguf_file(short, tmp_path):
    """Nobody serves a GGUF file as packed safetensors."""
    pytest.importorskip("libgguf")
    export("biographies-retrained", "q8_0", tmp_path / "export")
    [file] = (tmp_path / "export").glob("*.gguf")
    result = audit(file, base="biographies", benchmark="biographies", suite="quick", limit=2, output=tmp_path / "a")
    assert result.audit.kind == "GGUF file"
    assert list(result.digests.model) == [file.name]
    left_out = {each.attack: each.reason for each in result.audit.not_tried}
    assert "not served as safetensors" in left_out["quantize_packed:format=fp8"]
    assert [attack.label for attack in result.attacks] == ["paraphrase"]
    assert result.references["retrained"]


def test_without_the_model_before_unlearning_there_are_levels_and_no_shares(short, made, letgo, tmp_path):
    words = [
        "audit",
        "--model",
        made.base,
        "--forget",
        made.forget,
        "--retain",
        made.retain,
        "--suite",
        "standard",
    ]
    code, out, err = letgo(*words, "-o", tmp_path / "audit", "-q")
    assert code == 0, err
    result = read_result(tmp_path / "audit")
    assert result.audit.base is None
    assert result.before == {}
    assert result.judgement.word == "can't tell"
    assert result.judgement.shares == []
    # This model knows all of it.
    assert (len(result.judgement.subjects.after), result.judgement.subjects.before) == (4, None)
    assert {attack.outcome for attack in result.attacks} == {"can't tell"}
    assert {attack.name for attack in result.attacks} == {"quantize_packed", "paraphrase", "relearn"}
    assert all("before unlearning is not known" in attack.why and not attack.scores for attack in result.attacks)
    assert "4 of 4 subjects are revealed" in out
    for name in ("README.md", page.REPORT):
        text = (tmp_path / "audit" / name).read_text()
        assert "before unlearning is not known" in text
        assert "needs the model before unlearning" in text
        assert "kept 100 %" not in text
    code, _, err = letgo("brief", tmp_path / "audit", "-o", tmp_path / "brief.md")
    assert code == 0, err
    text = (tmp_path / "brief.md").read_text()
    assert "Take " not in text
    assert "## What was not tried" in text


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours handles it."""


@pytest.mark.parametrize("when", ["while it measures", "after the first attack", "before the page"])
def test_a_killed_audit_goes_on_to_the_same_record(short, made, whole, tmp_path, monkeypatch, when):
    given = {"model": made.loop, **made.data, "suite": "quick"}
    attacks, pages = page.with_attack, page.write_report
    made_so_far, scored = [], []

    def attack(target, plan):
        if when == "after the first attack" and made_so_far:
            raise Killed
        made_so_far.append(plan.label)
        return attacks(target, plan)

    def measure(model, tokenizer, works, **how):
        scored.append(model)
        if when == "while it measures" and len(scored) > 1:
            raise Killed
        return run_works(model, tokenizer, works, **how)

    def write(*given, **how):
        if when == "before the page":
            raise Killed
        return pages(*given, **how)

    with monkeypatch.context() as patched:
        patched.setattr(page, "with_attack", attack)
        patched.setattr(page, "write_report", write)
        patched.setattr("letgo.benchmarks.engine.base.run_works", measure)
        with pytest.raises(Killed):
            audit(**given, output=tmp_path / "cut")
    assert list((tmp_path / "cut").glob(PARTIAL.format("*")))
    with pytest.raises(UserError, match="go on with --resume"):
        audit(**given, output=tmp_path / "cut")
    audit(**given, output=tmp_path / "cut", resume=True)
    cut = tmp_path / "cut"
    assert record(cut) == record(whole)
    assert {path.name for path in cut.iterdir()} == {path.name for path in whole.iterdir()}
    assert (cut / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


def test_an_audit_goes_on_only_as_it_was_begun(short, made, saved, whole, tmp_path):
    given = {**made.data, "suite": "quick", "output": shutil.copytree(whole, tmp_path / "audit")}
    for changes, message in (
        ({"threshold": 0.9}, "differs in threshold"),
        ({"suite": "standard"}, "differs in suite, attacks"),
        ({"attacks": ["noise"]}, "differs in attacks"),
        ({"limit": 2}, "differs in eval_limit"),
        ({"retrained": saved.original}, "differs in retrained"),
        ({"base": None}, "differs in model"),
    ):
        with pytest.raises(UserError, match=message):
            audit(made.loop, **(given | changes), resume=True)
    with pytest.raises(UserError, match="differs in unlearned"):
        audit(saved.forms["full"], **given, resume=True)


def test_the_rows_may_not_change_meanwhile(short, made, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "audit")
    record = folder / "result.json"
    known = read_result(folder).digests.data["forget"].hmac_sha256
    record.write_text(record.read_text().replace(known, "0" * 64))
    with pytest.raises(UserError, match="the set forget changed since"):
        audit(made.loop, **made.data, suite="quick", output=folder, resume=True)


def test_the_weights_may_not_change_meanwhile(short, made, whole, tmp_path, monkeypatch):
    given = {**made.data, "suite": "quick", "output": shutil.copytree(whole, tmp_path / "audit")}
    monkeypatch.setattr(page, "weights_fingerprint", lambda model: "of other weights")
    with pytest.raises(UserError, match="its weights are others"):
        audit(made.loop, **given, resume=True)


def test_a_budget_leaves_out_the_dearest_and_says_which(short, made, tmp_path, monkeypatch):
    plan = page.plan_audit

    def dear(*given, **how):
        planned = plan(*given, **how)
        seconds = {label: 3600.0 if "relearn" in label else 0.001 for label in planned.seconds}
        return replace(planned, seconds=seconds | {page.MEASURE: 100.0})

    monkeypatch.setattr(page, "plan_audit", dear)
    result = audit(made.loop, **made.data, budget="10m", output=tmp_path / "audit")
    assert result.audit.budget == 600.0
    left_out = {each.attack: each.reason for each in result.audit.not_tried}
    assert left_out["relearn:steps=2"] == "about 60 min, beyond the budget of 10 min"
    assert {attack.name for attack in result.attacks} == {"quantize_packed", "paraphrase"}
    assert "relearn:steps=2" in (tmp_path / "audit" / "README.md").read_text()
    # Measuring took all of it: what was planned is not begun.
    monkeypatch.setattr(page.Auditing, "expected", lambda self, target, plan, attacks: [1e9] * len(attacks))
    result = audit(made.loop, **made.data, budget="10m", output=tmp_path / "late")
    assert result.attacks == []
    assert sum(each.reason == "the budget was used up before it" for each in result.audit.not_tried) == 2


def test_the_plan_comes_first_and_the_time_left_is_told(short, made, tmp_path):
    said = []

    class Lines(Quiet):
        def say(self, text):
            said.append(text)

    audit(made.loop, **made.data, output=tmp_path / "audit", reporter=Lines())
    plan = next(text for text in said if "memory on" in text)
    assert "3 attacks, the cheapest first: paraphrase" in plan
    assert "not tried: requantize" in plan
    assert "samples and record" in plan
    told = [text for text in said if text.startswith("attack ")]
    assert [text.split(":")[0] for text in told] == ["attack 1 of 3", "attack 2 of 3", "attack 3 of 3"]
    assert all("left" in text for text in told)


@pytest.mark.parametrize("error", [LetgoError(f"no room {INJECTED}\nsecond line"), MemoryError("all gone")])
def test_an_attack_that_can_not_be_finished_is_recorded_and_the_others_are_made(
    short, made, tmp_path, monkeypatch, error
):
    attacks = page.with_attack

    def attack(target, plan):
        if plan.name == "quantize_packed":
            raise error
        return attacks(target, plan)

    monkeypatch.setattr(page, "with_attack", attack)
    result = audit(made.loop, **made.data, suite="quick", output=tmp_path / "audit")
    failed = [each for each in result.audit.not_tried if each.failed]
    assert [each.attack for each in failed] == ["quantize_packed:format=fp8"]
    assert [attack.name for attack in result.attacks] == ["paraphrase"]
    for name in ("README.md", page.REPORT):
        text = (tmp_path / "audit" / name).read_text()
        assert "could not be finished" in text
        assert "<script>alert" not in text
    # What was begun and broke can't be told: a gate on all attacks is not passed, one on the others may be.
    gates = {text: check(result, text) for text in ("survived(*)", "survived(quantize*)", "attacked(paraphrase)")}
    assert [gate.passed for gate in gates.values()] == [False, False, True]
    assert gates["survived(quantize*)"].clauses[0].passed is None


def test_names_and_statements_from_elsewhere_are_text(short, made, letgo, tmp_path):
    model = tmp_path / "<img src=x onerror=alert(1)> [a](b)"
    shutil.copytree(made.loop, model)
    (model / "README.md").write_text(f"---\nauthor: {json.dumps(INJECTED)}\nbase_model: '[x](javascript:alert)'\n---\n")
    words = ["audit", "--model", model, "--base", made.base, "--forget", made.forget, "--suite", "quick", "-q"]
    junit = tmp_path / "junit.xml"
    code, out, err = letgo(*words, "-o", tmp_path / "audit", "--require", "survived(paraphrase)", "--junit", junit)
    assert code in (0, 3), err
    assert "\x1b" not in out
    result = read_result(tmp_path / "audit")
    assert result.audit.made_by["README.md: author"].startswith("<script>")
    for path in (tmp_path / "audit" / "README.md", tmp_path / "audit" / page.REPORT, junit):
        text = path.read_text()
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "\x1b" not in text
    card = (tmp_path / "audit" / "README.md").read_text()
    assert "[x](javascript" not in card
    assert str(tmp_path) not in card


def test_what_a_library_is_missing_for_is_left_out_with_the_reason(made, monkeypatch, tmp_path):
    """Of the real suite: GGUF's types need a library, membership texts that these data do not have."""

    def missing():
        raise UserError("attack 'quantize_gguf' needs libgguf: pip install 'letgo[gguf]'")

    monkeypatch.setattr("letgo.attacks.quantize_served.library", missing)
    monkeypatch.setattr(page, "measured", lambda *given: (_ for _ in ()).throw(Killed))
    plans = []
    monkeypatch.setattr(page, "timed", lambda asked, attacks: plans.extend(attacks) or plan_audit_of(attacks))
    planned = []
    monkeypatch.setattr(page.Auditing, "check_gate", lambda self, attacks, not_tried: planned.extend(not_tried))
    with pytest.raises(Killed):
        audit(made.loop, **made.data, output=tmp_path / "audit")
    reasons = {each.attack: each.reason for each in planned}
    gguf = [label for label in reasons if label.startswith("quantize_gguf")]
    assert len(gguf) == 3
    assert all("pip install 'letgo[gguf]'" in reasons[label] for label in gguf)
    assert "no forget and holdout texts" in reasons["membership"]
    assert {"paraphrase", "relearn", "quantize_packed", "sample", "noise"} <= {plan.name for plan in plans}


def plan_audit_of(attacks):
    from types import SimpleNamespace

    flops = {each.label: 1.0 for each in attacks}
    return SimpleNamespace(flops=flops, seconds={}, text=lambda: "a plan")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "https://host/v1"], "its address as --server URL"),
        (["--model", "biographies", "--base", "http://host/v1"], "its address as --server URL"),
        (["--model", "biographies"], "nothing to look for: give --forget FILE"),
        (["--model", "biographies", "--benchmark", "biographies", "--forget", "x"], "not both"),
        (["--model", "biographies", "--benchmark", "biographies", "--suite", "quik"], "did you mean 'quick'"),
        (["--model", "biographies", "--benchmark", "biographies", "--budget", "soon"], "a time such as 90s, 30m"),
        (["--model", "biographies", "--benchmark", "biographies", "--attack", "relern"], "did you mean 'relearn'"),
        (["--model", "nowhere/at/all", "--benchmark", "biographies"], "no such model"),
        (["--model", "biographies", "--benchmark", "biographies", "--dtype", "half"], "dtype"),
        (["--model", "biographies", "--benchmark", "biographies", "--junit", "x.xml"], "give both"),
        (["--model", "biographies", "--benchmark", "biographies", "--require", "forgotten"], "nobody can tell without"),
        (["--model", "biographies", "--benchmark", "biographies", "-o", "used"], "not empty"),
    ],
)
def test_mistakes(letgo, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    code, out, err = letgo("audit", *words, *([] if "-o" in words else ["-o", "audit"]), "-q")
    assert code == 2, err
    assert message in " ".join(err.split())
    assert out == ""
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize(
    ("require", "message"),
    [
        ("retain_acuracy > 0.5", "unknown name 'retain_acuracy'; did you mean 'retain_accuracy'"),
        ("forgot_accuracy < 0.5", "unknown name 'forgot_accuracy'"),
        ("retain >= 0.9*befor", "no stage 'befor'; did you mean 'before'"),
        ("survived(quantise*)", "no attack matches; did you mean"),
        ("survived(requantize)", "no such attack is made here; requantize is left out"),
        ("subject_revealed <= 0", "did you mean 'subjects_revealed'"),
    ],
)
def test_a_gate_that_could_never_be_passed_is_told_before_anything_is_measured(
    short, made, tmp_path, monkeypatch, require, message
):
    monkeypatch.setattr(page, "measured", lambda *given: pytest.fail("measured"))
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        audit(made.loop, **made.data, suite="quick", require=require, output=tmp_path / "audit")


def test_every_suite_holds_attacks_that_there_are():
    from letgo.attacks.engine.cost import evaluations, passes
    from letgo.attacks.engine.spec import plan_attack
    from letgo.auditing.suites import SUITES, tries_of

    sizes = []
    for suite in SUITES.names():
        plans = [plan_attack(each.attack) for each in tries_of(suite)]
        assert len({plan.label for plan in plans}) == len(plans)
        assert all(passes(plan, 20) + evaluations(plan) > 0 for plan in plans)
        sizes.append(len(plans))
    assert sizes == sorted(set(sizes))
