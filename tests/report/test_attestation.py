"""Statements on runs: what they say, and which part a check names when a file is changed afterwards."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys

import pytest

from letgo.benchmarks.engine.general_text import general_paragraphs
from letgo.core.errors import UserError
from letgo.data.binding import key_path
from letgo.report import rescoring
from letgo.report.attestation import PREDICATE, STATEMENT, attest
from letgo.report.limits import limits
from letgo.report.verification import verify
from letgo.runs.results import (
    RESULT_FILE,
    SAMPLES_FILE,
    SIGNATURE_FILE,
    STATEMENT_FILE,
    Audit,
    Digests,
    NotTried,
    read_result,
    write_result,
)
from tests import tiny
from tests.records.damage import BYTES, PLACES, TOKENS, VALUES, Damage
from tests.report import runs as made

pytest.importorskip("model_signing", reason="not installed: pip install 'letgo[sign]'")

SCORED = len(tiny.FORGET) + len(tiny.RETAIN) + len(general_paragraphs(held_out=True))
"""Samples of a model on the tiny rows."""


@pytest.fixture
def run(attested, tmp_path):
    return shutil.copytree(attested, tmp_path / "run")


def statement_of(run):
    return json.loads((run / STATEMENT_FILE).read_text())


def problems(run, **how):
    return [(problem.part, problem.name) for problem in verify(run, **how).problems]


# -- the record ------------------------------------------------------------------------------------------------------


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_record_is_bound_to_what_it_speaks_of(run, model_directory):
    bound = read_result(run).digests
    assert bound.model["model.safetensors"] == sha256(run / "model.safetensors")
    assert (
        bound.base["model.safetensors"]
        == sha256(model_directory / "model.safetensors")
        != bound.model["model.safetensors"]
    )
    assert bound.tokenizer["tokenizer.json"] == sha256(run / "tokenizer.json")
    assert {name: digest.rows for name, digest in bound.data.items()} == {"forget": 4, "retain": 4, "scored": SCORED}
    exported = next(attack for attack in read_result(run).attacks if attack.name == "exported")
    assert {name: file["sha256"] for name, file in exported.did["files"].items()} == {
        path.name: sha256(path) for path in (run / "export").glob("*.safetensors")
    }
    assert read_result(run).versions["device"].startswith(("cpu: ", "cuda: "))


def test_the_key_of_the_data_is_its_owners_alone_and_in_no_record(run):
    assert key_path().stat().st_mode & 0o777 == 0o600
    key = key_path().read_text().strip()
    assert len(key) == 64
    for path in run.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert key.encode() not in content
            assert str(key_path()).encode() not in content, path


# -- the statement ---------------------------------------------------------------------------------------------------


def test_the_statement_is_in_totos_and_names_every_file(run):
    said = statement_of(run)
    assert (said["_type"], said["predicateType"]) == (STATEMENT, PREDICATE)
    files = {subject["name"]: subject["digest"]["sha256"] for subject in said["subject"]}
    assert files == {name: sha256(run / name) for name in files}
    assert {"model.safetensors", "config.json", "tokenizer.json", "result.json", "samples.jsonl", "config.yaml"} <= set(
        files
    )
    assert "export/export.json" in files
    assert any(name.startswith("export/model-") for name in files)


def test_the_statement_says_what_the_record_says_and_what_was_not_tried(run):
    said, result = statement_of(run)["predicate"], read_result(run)
    assert said["metrics"]["after"]["forget_probability"]["value"] == result.after["forget_probability"].value
    assert [attack["attack"] for attack in said["attacks"]] == [attack.label for attack in result.attacks]
    assert {"relearn", "paraphrase"} & set(said["notTried"])
    assert "quantize" not in said["notTried"]
    text = " ".join(said["limits"])
    assert "relearn" in text
    assert "no proof of erasure" in text
    assert "No model that never saw the forget set" in text


def test_the_statement_names_no_subject_no_row_and_no_folder(run, model_directory):
    text = (run / STATEMENT_FILE).read_text()
    for row in tiny.FORGET:
        assert row["group"] not in text
        assert row["answer"] not in text
    assert str(model_directory.parent) not in text
    assert "compliant" not in text.lower()


def test_a_statement_says_what_each_kind_of_record_leaves_open(tmp_path):
    path = {"path": "/home/ann/secret/model"}
    attack = made.quantize(name="external", settings=path, kept=None, revealed=["Ann", "Bo"])
    attacked = made.result(attacks=[attack])
    text = " ".join(limits(attacked))
    assert "Nothing can be told from these attacks" in text
    assert "2 of 20 subjects are revealed; by a one-sided 95 % bound up to 28 %" in text
    assert "external:path=…/model" in text
    assert "its level is taken from chance" in text
    plain = made.result(config=made.result().config | {"eval_limit": 7}, attacks=[])
    text = " ".join(limits(plain))
    assert "No attack was made" in text
    assert "At most 7 items of each set were asked." in text
    scored = made.result(run_id="eval-1", attacks=[], judgement=None, digests=Digests())
    text = " ".join(limits(scored))
    assert "only scored" in text
    assert "not bound to the model's files, the tokenizer, the data" in text
    made.write_run(tmp_path / "run", attacked)
    attest(tmp_path / "run")
    assert "/home/ann" not in (tmp_path / "run" / STATEMENT_FILE).read_text()
    assert "Ann" not in (tmp_path / "run" / STATEMENT_FILE).read_text()


def test_a_statement_on_an_audit_says_which_model_and_what_of_its_plan_was_not_made(tmp_path):
    missing = [
        NotTried(attack="quantize_gguf:type=q8_0", reason="/opt/x/lib is not installed"),
        NotTried(attack="relearn:steps=9", reason="out of memory", failed=True),
    ]
    about = Audit(
        model="/srv/models/loop",
        kind="directory",
        weights="ab" * 16,
        made_by={"architecture": "Llama"},
        suite="quick",
        threshold=0.5,
        attacks=["quantize:bits=4", "relearn:steps=9"],
        not_tried=missing,
    )
    made.write_run(tmp_path / "audit", made.result(audit=about))
    attest(tmp_path / "audit")
    said = statement_of(tmp_path / "audit")["predicate"]
    assert said["audit"]["model"] == "…/loop"
    assert (said["audit"]["weights"], said["audit"]["made_by"]) == (about.weights, about.made_by)
    assert [each["attack"] for each in said["audit"]["not_tried"]] == [each.attack for each in missing]
    text = " ".join(said["limits"])
    assert "quantize_gguf:type=q8_0 was left out: …/lib is not installed." in text
    assert "relearn:steps=9 could not be finished: out of memory." in text
    assert verify(tmp_path / "audit").passed


def test_what_a_failed_run_says_is_not_attested(tmp_path):
    made.write_run(tmp_path / "run", made.result(status="failed", reasons=["the loss is NaN"], judgement=None))
    with pytest.raises(UserError, match=r"the loss is NaN.*nothing to attest"):
        attest(tmp_path / "run")


def test_a_model_that_was_changed_before_is_not_attested(run):
    change(run / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors \(weights\): not as when the record was made"):
        attest(run)


def test_an_older_record_is_attested_with_what_it_lacks(tmp_path):
    made.write_run(tmp_path / "run", made.result(judgement=None))
    with pytest.raises(UserError, match="nothing to check"):
        verify(tmp_path / "run")
    attest(tmp_path / "run")
    assert any("older letgo" in sentence for sentence in statement_of(tmp_path / "run")["predicate"]["limits"])
    assert verify(tmp_path / "run").passed


# -- what was changed ------------------------------------------------------------------------------------------------


def change(path, at=-3):
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def change_signature(run):
    """Another signature in the bundle, still well-formed."""
    bundle = json.loads((run / SIGNATURE_FILE).read_text())
    signature = bundle["dsseEnvelope"]["signatures"][0]
    raw = bytearray(base64.b64decode(signature["sig"]))
    raw[-1] ^= 1
    signature["sig"] = base64.b64encode(bytes(raw)).decode()
    (run / SIGNATURE_FILE).write_text(json.dumps(bundle))


def change_record(run):
    result = read_result(run)
    better = result.after["forget_probability"].model_copy(update={"value": 0.001})
    write_result(run, result.model_copy(update={"after": result.after | {"forget_probability": better}}))


def change_samples(run):
    rows = (run / SAMPLES_FILE).read_text().splitlines()
    (run / SAMPLES_FILE).write_text("\n".join(rows[1:]) + "\n")


def change_statement(run):
    said = statement_of(run)
    said["predicate"]["limits"] = []
    (run / STATEMENT_FILE).write_text(json.dumps(said))


def exported_file(run):
    return next((run / "export").glob("*.safetensors"))


TAMPERED = {
    "weights": (lambda run: change(run / "model.safetensors"), ("weights", "model.safetensors")),
    "config": (lambda run: edit(run / "config.json", '"rms_norm_eps"', '"rms_norm_epz"'), ("weights", "config.json")),
    "tokenizer": (lambda run: edit(run / "tokenizer.json", "amberton", "ambertom"), ("tokenizer", "tokenizer.json")),
    "record": (change_record, ("record", RESULT_FILE)),
    "broken record": (lambda run: (run / RESULT_FILE).write_text("{"), ("record", RESULT_FILE)),
    "samples": (change_samples, ("samples", SAMPLES_FILE)),
    "settings": (lambda run: edit(run / "config.yaml", "max_steps: 2", "max_steps: 3"), ("settings", "config.yaml")),
    "export": (lambda run: change(exported_file(run)), ("exported file", "export/model-00001.safetensors")),
    "lost export": (lambda run: exported_file(run).unlink(), ("exported file", "export/model-00001.safetensors")),
    "statement": (change_statement, ("statement", STATEMENT_FILE)),
    "broken statement": (lambda run: (run / STATEMENT_FILE).write_text("{"), ("statement", STATEMENT_FILE)),
    "signature": (change_signature, ("signature", SIGNATURE_FILE)),
    "no signature": (lambda run: (run / SIGNATURE_FILE).unlink(), ("signature", SIGNATURE_FILE)),
    "no statement": (lambda run: (run / STATEMENT_FILE).unlink(), ("statement", STATEMENT_FILE)),
    "an adapter added": (
        lambda run: (run / "adapter_config.json").write_text("{}"),
        ("weights", "adapter_config.json"),
    ),
}


def test_what_was_not_changed_passes(run, keys):
    found = verify(run, key=keys["ours"][1])
    assert found.passed
    assert {"weights", "tokenizer", "record", "samples", "exported file", "statement", "signature"} <= set(
        found.checked
    )


@pytest.mark.parametrize("part", TAMPERED)
def test_the_part_that_was_changed_is_named(letgo, run, keys, part):
    tamper, named = TAMPERED[part]
    tamper(run)
    code, out, _ = letgo("verify", run, "--key", keys["ours"][1], "--json", "-q")
    assert code == 3
    found = json.loads(out)
    assert not found["passed"]
    assert named in [(problem["part"], problem["name"]) for problem in found["problems"]]
    # No other file of the run is blamed, and no part is said to be as it was and not so.
    assert {problem["name"] for problem in found["problems"]} == {named[1]}
    assert not {problem["part"] for problem in found["problems"]} & found["checked"].keys()


def test_another_key_is_not_the_signers(run, keys):
    assert problems(run, key=keys["theirs"][1]) == [("signature", SIGNATURE_FILE)]


def test_a_changed_record_with_a_statement_to_fit_fails_the_signature(run, keys):
    """Whoever can write the files can make the statement again, but not sign it."""
    signature = (run / SIGNATURE_FILE).read_bytes()
    change_record(run)
    attest(run)
    assert verify(run).passed
    assert "who made the statement: it is not signed" in verify(run).unchecked
    (run / SIGNATURE_FILE).write_bytes(signature)
    assert problems(run, key=keys["ours"][1]) == [("statement", STATEMENT_FILE)]


def test_without_a_key_a_check_says_what_it_did_not_check(run):
    unchecked = " ".join(verify(run).unchecked)
    for way in ("--key", "--data", "--base", "--rescore"):
        assert way in unchecked


def test_a_statement_that_says_other_figures_than_the_record_is_named_without_a_signature(run):
    said = statement_of(run)
    said["predicate"]["metrics"]["after"]["forget_probability"]["value"] = 0.0
    (run / STATEMENT_FILE).write_text(json.dumps(said))
    assert problems(run) == [("statement", STATEMENT_FILE)]


def test_a_statement_with_another_digest_is_to_blame_not_the_file(run):
    said = statement_of(run)
    subject = next(subject for subject in said["subject"] if subject["name"] == "model.safetensors")
    subject["digest"]["sha256"] = "0" * 64
    (run / STATEMENT_FILE).write_text(json.dumps(said))
    assert problems(run) == [("statement", STATEMENT_FILE)]


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "export/../../outside"])
def test_a_statement_leads_nowhere_else(run, name):
    said = statement_of(run)
    said["subject"][0]["name"] = name
    (run / STATEMENT_FILE).write_text(json.dumps(said))
    [problem] = verify(run).problems
    assert problem.part == "statement"
    assert "out of the directory" in problem.what


@pytest.mark.parametrize("file", [STATEMENT_FILE, SIGNATURE_FILE])
@pytest.mark.parametrize("kind", [*BYTES, *VALUES, *PLACES])
def test_whatever_befalls_a_statement_or_a_signature_is_named(run, keys, file, kind):
    original, noticed = (run / file).read_bytes(), []
    for where in (0.05, 0.8):
        Damage(file, kind, where, TOKENS[0]).do(run)
        if (run / file).is_file() and (run / file).read_bytes() == original:
            continue
        blamed = {problem.name for problem in verify(run, key=keys["ours"][1]).problems}
        assert blamed <= {file}
        noticed.append(bool(blamed))
        shutil.rmtree(run / file) if (run / file).is_dir() else (run / file).unlink()
        (run / file).write_bytes(original)
    # All of a statement is signed; a signature's file has fields that say nothing.
    assert noticed
    assert all(noticed) or (file == SIGNATURE_FILE and kind in VALUES)


def test_a_run_whose_model_was_changed_is_not_attacked(letgo, run):
    change(run / "model.safetensors")
    record = (run / RESULT_FILE).read_bytes()
    code, _, err = letgo("attack", run, "--attack", "quantize:bits=2", "-q")
    assert code == 2
    assert "model.safetensors (weights): not as when the record was made" in err
    assert (run / RESULT_FILE).read_bytes() == record


def test_a_record_without_a_statement_is_bound_to_the_models_files(run):
    for name in (STATEMENT_FILE, SIGNATURE_FILE):
        (run / name).unlink()
    found = verify(run)
    assert found.passed
    assert any("letgo attest" in what for what in found.unchecked)
    change(run / "model.safetensors")
    change(exported_file(run))
    assert problems(run) == [("weights", "model.safetensors"), ("exported file", "export/model-00001.safetensors")]


# -- data, base, scores ----------------------------------------------------------------------------------------------


def test_other_rows_and_another_base_are_named(attested, run, model_directory, tmp_path):
    assert {"data", "base"} <= set(verify(run, data=True, base=True).checked)
    other = tiny.save(tmp_path / "other", tiny.make_model(seed=5), tiny.make_tokenizer())
    rows = tiny.write_jsonl(tmp_path / "forget.jsonl", [*tiny.FORGET[:3], tiny.FORGET[3] | {"answer": "stone"}])
    result = read_result(run)
    write_result(run, result.model_copy(update={"config": result.config | {"model": str(other), "forget": str(rows)}}))
    attest(run)
    assert problems(run, data=True, base=True) == [
        ("data", "the set forget"),
        ("data", "the set scored"),
        ("base", "model.safetensors"),
    ]


def test_data_is_not_checked_with_another_key(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LETGO_DATA_KEY", str(tmp_path / "data.key"))
    with pytest.raises(UserError, match="there is no key at"):
        verify(run, data=True)
    (tmp_path / "data.key").write_text("ab" * 32)
    with pytest.raises(UserError, match="is another one"):
        verify(run, data=True)
    (tmp_path / "data.key").write_text("password")
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        verify(run, data=True)


def test_scored_anew_it_is_the_same_to_the_bit(run):
    found = verify(run, rescore=True)
    assert found.passed
    assert found.checked["scores"] == f"{SCORED} samples agree, to the bit"


def nudged(run, by):
    """The run with a score of one recorded sample off, attested so."""
    rows = [json.loads(line) for line in (run / SAMPLES_FILE).read_text().splitlines()]
    row = next(row for row in rows if row["stage"] == "after" and "probability" in row["scores"])
    row["scores"]["probability"] += by
    tiny.write_jsonl(run / SAMPLES_FILE, rows)
    attest(run)
    return verify(run, rescore=True)


def test_a_score_off_by_a_bit_is_named_on_equal_hardware_alone(run, monkeypatch):
    found = nudged(run, 2.0**-40)
    assert [problem.part for problem in found.problems] == ["scores"]
    assert f"1 of {SCORED} samples score otherwise" in str(found.problems[0])
    monkeypatch.setattr(rescoring, "other_arithmetic", lambda result: "another processor")
    found = verify(run, rescore=True)
    assert found.passed
    assert found.checked["scores"] == f"{SCORED} samples agree, within the tolerance (another processor)"


def test_equal_hardware_is_by_build_processor_and_threads(run):
    result = read_result(run)
    assert rescoring.other_arithmetic(result) == ""
    for name in rescoring.SAME_BITS:
        other = result.model_copy(update={"versions": result.versions | {name: "another"}})
        assert f"recorded with {name} another" in rescoring.other_arithmetic(other)
    assert rescoring.other_arithmetic(result.model_copy(update={"processes": {"count": 2}}))


def rows_of(*scores):
    return {("forget", str(n)): {"scores": {"probability": score}, "question": "q"} for n, score in enumerate(scores)}


def test_what_may_be_off_elsewhere():
    recorded = rows_of(*[0.5] * 40)
    assert rescoring.compared(recorded, rows_of(*[0.5005] * 40), 1e-3) == []
    assert rescoring.compared(recorded, rows_of(*[0.5] * 38, 0.9, 0.9), 1e-3) == []
    assert "3 of 40" in rescoring.compared(recorded, rows_of(*[0.5] * 37, *[0.9] * 3), 1e-3)[0]
    assert "recorded samples are of no question" in rescoring.compared(recorded, rows_of(0.5), 1e-3)[0]
    assert "have no recorded sample" in rescoring.compared(rows_of(0.5), recorded, 1e-3)[0]
    asked = {key: row | {"question": "another"} for key, row in recorded.items()}
    assert "other questions" in rescoring.compared(recorded, asked, 1e-3)[0]


def test_models_that_lie_elsewhere_are_bound_too(letgo, tmp_path, model_directory):
    """An evaluation's record, and one of attacks on a bare model."""
    rows = tiny.write_jsonl(tmp_path / "forget.jsonl", tiny.FORGET)
    model = shutil.copytree(model_directory, tmp_path / "model")
    code, _, _ = letgo("eval", model, "--benchmark", f"rows:forget={rows}", "-o", tmp_path / "eval", "-q")
    assert code == 0
    letgo("attest", tmp_path / "eval", "-q")
    assert letgo("verify", tmp_path / "eval", "--rescore", "-q")[0] == 0
    words = ("attack", model, "--original", model_directory, "--benchmark", f"rows:forget={rows}", "--limit", "2")
    assert letgo(*words, "--attack", "quantize:bits=4", "-o", tmp_path / "attacked", "-q")[0] == 0
    letgo("attest", tmp_path / "attacked", "-q")
    assert letgo("verify", tmp_path / "attacked", "--base", "--rescore", "-q")[0] == 0
    change(model / "model.safetensors")
    for folder in ("eval", "attacked"):
        code, out, _ = letgo("verify", tmp_path / folder, "-q")
        assert code == 3
        assert "✗ weights: model.safetensors is not the file that was attested" in out


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_signs_and_another_tool_checks(letgo, run, keys):
    code, out, _ = letgo("attest", run, "--sign", keys["ours"][0], "-q")
    assert code == 0
    assert "What it does not show:" in out
    code, out, _ = letgo("verify", run, "--key", keys["ours"][1], "-q")
    assert code == 0
    assert "✓ signature" in out
    words = ("-m", "model_signing", "verify", "key", run / STATEMENT_FILE, "--public_key", keys["ours"][1])
    done = subprocess.run([sys.executable, *words, "--signature", run / SIGNATURE_FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_told(letgo, run, keys, tmp_path):
    for words, message in (
        (("attest", tmp_path), "not a run directory"),
        (("attest", run, "--sign", run / "config.yaml"), "can't be used"),
        (("attest", run, "--sign", tmp_path / "none.pem"), "no such file"),
        (("verify", tmp_path / "none"), "not a run directory"),
        (("verify", tmp_path), "not a run directory"),
        (("verify", run, "--key", keys["ours"][0]), "can't be used"),
    ):
        code, _, err = letgo(*words)
        assert (code, message in err) == (2, True), err
