"""The gate: what passes, what does not, what nobody can tell; and the file that CI reads."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from letgo import check
from letgo.auditing.junit import write_junit
from letgo.core.errors import UserError
from letgo.runs.query import parse_query
from letgo.runs.results import Audit, NotTried, write_result
from tests.report import runs as made

UNCLEAR = made.quantize(name="prefill", settings={}, kept=None, bound=None, survived=False, why="it no longer knows")
BROKEN = made.quantize(name="prune", settings={}, collapsed=True, survived=False, reasons=["perplexity"], why="broke")
ABOUT = Audit(model="x/model", kind="directory", weights="ab" * 16, base="y", suite="quick", threshold=0.5, attacks=[])


def record(**changes):
    """Retain probability stays at 0.3, retain accuracy falls from .95 to .9; it survives one attack of two."""
    return made.result(**({"attacks": [made.quantize(), made.relearn()]} | changes))


@pytest.mark.parametrize(
    ("require", "passed"),
    [
        ("forgotten", True),
        ("partly_forgotten", True),
        ("survived(quantize)", True),
        ('survived("quantize*")', True),
        ("survived(quantize:bits=4)", True),
        ("survived(relearn)", False),
        ("survived(*)", False),
        ("survived(*) or forgotten", True),
        ("not survived(relearn)", True),
        ("retain >= 0.9*before", True),
        ("retain >= 0.95*before", False),
        ("retain_accuracy >= 0.9*before and retain_probability >= before", True),
        ("before.retain > 0.2", True),
        ("forget < before", True),
        ("forget_accuracy <= 0.5 and forget_probability <= 0.02", True),
        ("subjects_revealed <= 0", True),
        ("subjects_revealed < 0", False),
        ("subjects = 20", True),
        ("kept(quantize) >= 0.8", True),
        ("kept(*) >= 0.8", False),
        ("finished and status = finished", True),
        ("forgotten and survived(quantize) and retain >= 0.9*before and subjects_revealed <= 0", True),
    ],
)
def test_what_passes(require, passed):
    gate = check(record(), require)
    assert gate.passed is passed, gate.text()
    assert all(clause.passed is not None for clause in gate.clauses)


@pytest.mark.parametrize(
    ("require", "told"),
    [
        # Neither what can't be told nor its opposite passes.
        ("survived(prefill)", None),
        ("not survived(prefill)", None),
        ("survived(*)", None),
        ("kept(prefill) >= 0", None),
        ("kept(*) >= 0", None),
        ("not kept(*) >= 0", None),
        # What is known decides where it can.
        ("survived(prefill) or forgotten", True),
        ("not (survived(prefill) or forgotten)", False),
        ("not (survived(prefill) and survived(quantize))", None),
        # A word is true or not, and has no order.
        ("not (forgotten >= 1)", None),
        # A model that the attack broke has not survived.
        ("survived(prune)", False),
    ],
)
def test_what_nobody_can_tell_does_not_pass(require, told):
    attacks = [made.quantize(), UNCLEAR, *([BROKEN] if "prune" in require else [])]
    gate = check(record(attacks=attacks), require)
    assert [clause.passed for clause in gate.clauses] == [told]
    assert gate.passed is (told is True)


def test_a_record_without_judgement_or_attacks_tells_nothing():
    gate = check(record(attacks=[], judgement=None), "forgotten and survived(*) and not forgotten")
    assert [clause.passed for clause in gate.clauses] == [None, None, None]
    assert "no such attack was made" in gate.clauses[1].figures


def test_what_was_not_measured_is_no_slip_and_does_not_pass():
    """A benchmark without texts to continue has no such score: that is known only when it was measured."""
    [clause] = check(record(), "retain_verbmem > 0.5").clauses
    assert clause.passed is None
    assert "not measured" in clause.figures
    failed = check(record(status="failed", before={}, after={}, judgement=None), "forget_accuracy < 0.5 and retain > 0")
    assert [clause.passed for clause in failed.clauses] == [False, None, None]
    with pytest.raises(UserError, match="did you mean"):
        check(record(), "retian_accuracy > 0.5")


def test_what_is_no_number_passes_neither_way():
    after = record().after
    broken = after["forget_probability"].model_copy(update={"value": float("nan")})
    for require in ("forget_probability <= 0.5", "not (forget_probability > 0.5)", "forget_probability != 0.5"):
        gate = check(record(after=after | {"forget_probability": broken}), require)
        assert [clause.passed for clause in gate.clauses] == [None], require
    # Without a metric of the retain set its name is that of the data, and a text is not above a number.
    without = {
        stage: {name: metric for name, metric in metrics.items() if not name.startswith("retain")}
        for stage, metrics in (("before", record().before), ("after", after))
    }
    for require in ("retain >= 0.95*before", "retain >= 0", "not (retain < 0.95*before)"):
        [clause] = check(record(**without), require).clauses
        assert clause.passed is None, require
        assert "retain not measured" in clause.figures


def test_a_broken_model_reveals_nothing_and_passes_nothing():
    gate = check(record(status="collapsed", reasons=["perplexity doubled"]), "subjects_revealed <= 0")
    assert not gate.passed
    assert "perplexity doubled" in gate.text()


def test_each_clause_has_its_own_text_and_figures():
    gate = check(record(), "forgotten and (survived(relearn) or subjects > 3) and not (retain < 0.95*before)")
    assert [clause.text for clause in gate.clauses] == [
        "forgotten",
        "survived(relearn) or subjects > 3",
        "not (retain < 0.95*before)",
    ]
    figures = gate.clauses[2].figures
    assert "retain_accuracy 0.90, < 0.90 (0.95 × before) asked" in figures
    assert (
        "relearn:groups=10,steps=60,learning_rate=2e-05 not survived (but only 23 % is kept)" in gate.clauses[1].figures
    )
    lines = check(record(), "forgotten and survived(relearn)").text().splitlines()
    assert lines[0] == "gate not passed: 1 of 2 clauses"
    assert lines[1].startswith("  ✗ survived(relearn): failed; ")
    assert lines[2].startswith("  ✓ forgotten: passed; ")


@pytest.mark.parametrize(
    ("require", "message"),
    [
        ("retain_acuracy > 0", "did you mean 'retain_accuracy'"),
        ("retian >= 0.95*before", "no run has a field 'retian'; did you mean 'retain"),
        ("forgoten", "'forgoten' is no condition by itself; did you mean 'forgotten'"),
        ("retain >= 0.95*befor", "no stage 'befor'; did you mean 'before'"),
        ("survived(quantise)", "no attack matches; did you mean 'quantize'"),
        ("surviveds(*)", "unknown surviveds"),
        ("forgotten and", "expected a field's name at its end"),
        ("__import__('os')", "unknown __import__"),
        ("", "empty expression"),
        ("retain >= before/0", "'before/0' is no number"),
        ("forget_accuracy >= '0.1'", "'0.1' is no number"),
        ("kept(*) > x", "'x' is no number"),
        ("forget_accuracy <= nan", "'nan' is no number"),
        ("retain >= nan*before", "'nan' is no number"),
        ("1/0 > 0", "no run has a field '1/0'"),
    ],
)
def test_mistakes_are_told_with_near_names(require, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        check(record(), require)


def test_what_was_not_tried_is_told_beside_what_survived():
    left_out = [NotTried(attack="quantize_gguf:type=q8_0", reason="no library")]
    audit = ABOUT.model_copy(update={"not_tried": left_out})
    [clause] = check(record(attacks=[made.quantize()], audit=audit), "survived(quantize*)").clauses
    assert clause.passed
    assert clause.figures == "all 1 survived; not tried: quantize_gguf:type=q8_0"
    broke = ABOUT.model_copy(update={"not_tried": [left_out[0].model_copy(update={"failed": True})]})
    [clause] = check(record(attacks=[made.quantize()], audit=broke), "survived(quantize*)").clauses
    assert clause.passed is None


def test_the_words_are_of_the_language_of_runs_too():
    from letgo.runs.record import RunRecord

    records = [RunRecord.of("a", record()), RunRecord.of("b", record(judgement=made.judgement("partly forgotten")))]
    picked = parse_query("forgotten and retain >= 0.9*before").select(records)
    assert [each.path for each in picked] == ["a"]
    assert len(parse_query("partly_forgotten and subjects_revealed = 0").select(records)) == 2


def check_junit(path):
    """The parts of the JUnit schema that GitLab, Jenkins (jenkins-junit.xsd) and GitHub's reporters read."""
    allowed = {
        "testsuites": ({"name", "tests", "failures", "errors", "time"}, {"testsuite"}),
        "testsuite": (
            {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
            {"properties", "testcase"},
        ),
        "properties": (set(), {"property"}),
        "property": ({"name", "value"}, set()),
        "testcase": ({"name", "classname", "time"}, {"failure"}),
        "failure": ({"message", "type"}, set()),
    }
    root = ElementTree.fromstring(path.read_bytes())
    assert root.tag == "testsuites"
    for element in root.iter():
        attributes, children = allowed[element.tag]
        assert set(element.attrib) == attributes
        assert {child.tag for child in element} <= children
    [suite] = root
    assert [child.tag for child in suite] == ["properties", *["testcase"] * (len(suite) - 1)]
    cases = suite.findall("testcase")
    assert len({case.get("name") for case in cases}) == len(cases)
    for element in (root, suite):
        assert int(element.get("tests")) == len(cases)
        assert int(element.get("failures")) == sum(case.find("failure") is not None for case in cases)
        assert int(element.get("errors")) == 0
        assert float(element.get("time")) >= 0
    import datetime

    assert datetime.datetime.fromisoformat(suite.get("timestamp")).tzinfo is None
    return suite


def test_the_file_that_ci_reads(tmp_path):
    hostile = "x\x00\x1b[31m<a>&\ufffe]]>"
    audit = ABOUT.model_copy(update={"model": hostile})
    result = record(attacks=[made.quantize(), UNCLEAR], audit=audit)
    gate = check(result, "forgotten and survived(prefill) and survived(quantize) and retain >= before")
    suite = check_junit(write_junit(tmp_path / "junit.xml", gate, result))
    assert suite.get("name") == "letgo audit: x��[31m<a>&�]]>"
    failures = {case.get("name"): case.find("failure") for case in suite.findall("testcase")}
    types = {name: None if failure is None else failure.get("type") for name, failure in failures.items()}
    assert types == {
        "forgotten": None,
        "survived(prefill)": "can't tell",
        "survived(quantize)": None,
        "retain >= before": "failed",
    }
    assert "retain_accuracy 0.90, >= 0.95" in failures["retain >= before"].get("message")
    assert failures["retain >= before"].text.startswith("✗ retain >= before: failed; ")


def test_the_command(letgo, tmp_path):
    (tmp_path / "run").mkdir()
    write_result(tmp_path / "run", record())
    words = ["check", tmp_path / "run", "--require"]
    code, out, err = letgo(*words, "forgotten and retain >= 0.9*before")
    assert (code, err) == (0, "")
    assert out.startswith("gate passed")
    code, out, _ = letgo(*words, "forgotten and survived(*)", "--junit", tmp_path / "junit.xml")
    assert code == 3
    assert "✗ survived(*): failed; relearn" in out
    assert check_junit(tmp_path / "junit.xml").get("failures") == "1"
    code, out, _ = letgo(*words, "survived(*)", "--json")
    assert code == 3
    assert json.loads(out)["clauses"][0]["outcome"] == "failed"
    for require, message in (("forgoten", "did you mean"), ("survived(x)", "no attack matches")):
        code, out, err = letgo(*words, require)
        assert (code, out) == (2, "")
        assert message in err
    code, _, err = letgo("check", tmp_path, "--require", "forgotten")
    assert code == 2
    assert "is not a run directory" in err


def test_an_audits_exit_code(letgo, whole, tmp_path):
    """The gate of a finished audit, by the command that goes on with it."""
    code, out, _ = letgo("check", whole, "--require", "subjects_revealed <= 4", "--json")
    assert code == 0
    assert json.loads(out)["passed"] is True
    code, out, _ = letgo("check", whole, "--require", "subjects_revealed < 0", "--junit", tmp_path / "junit.xml")
    assert code == 3
    assert "asked" in out
    check_junit(tmp_path / "junit.xml")
