"""Erasure requests: the register, one run on all that are open, what is written back, and the letter."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import pytest

import letgo as library
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.report.letter import letter, write_letter
from letgo.runs.register import (
    Outcome,
    SubjectOutcome,
    add_request,
    change_requests,
    month_after,
    new_request,
    read_register,
    today,
)
from letgo.training import erasure
from letgo.training.config import make_config
from letgo.training.erasure import line_of, outcome_of, run_requests
from tests import tiny
from tests.report import runs as made

ALAND, BORDURIA, CARPANIA, DORNIA = (row["group"] for row in tiny.FORGET)
DATA = [*tiny.FORGET, *tiny.RETAIN]


@pytest.fixture
def register(tmp_path):
    return tmp_path / "requests.jsonl"


@pytest.fixture
def data(tmp_path):
    return tiny.write_jsonl(tmp_path / "rows.jsonl", DATA)


def settings(model, **changes):
    values = {"model": str(model), "max_steps": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 2}
    return make_config(values | {"use_cpu": True} | changes)


def outcome(run="r1", base="model", revealed=False, **changes):
    subject = SubjectOutcome(before=True, revealed=revealed, by=["as it is"] if revealed else [])
    values = {
        "run": run,
        "path": "out/run",
        "model": base,
        "base": base,
        "created": "2026-11-20T10:00:00+00:00",
        "word": "forgotten",
        "attacks": [],
        "subjects": {ALAND: subject},
    }
    return Outcome(**(values | changes))


# -- the register ----------------------------------------------------------------------------------------------------


def test_a_request_is_kept_with_its_dates_for_its_owner_alone(letgo, register):
    words = ("add", "R-1", "--subject", ALAND, "--subject", "two words", "--basis", "Art. 17", "--register", register)
    code, out, _ = letgo("requests", *words)
    assert code == 0
    assert str(month_after(today())) in out
    assert register.stat().st_mode & 0o777 == 0o600
    assert read_json_lines(register) == [
        {
            "schema": 1,
            "id": "R-1",
            "subjects": [ALAND, "two words"],
            "received": str(today()),
            "deadline": str(month_after(today())),
            "basis": "Art. 17",
            "outcomes": [],
        }
    ]
    code, _, err = letgo("requests", *words)
    assert (code, "has a request 'R-1' already" in err) == (2, True)


@pytest.mark.parametrize(
    ("day", "due"),
    [
        ("2026-11-03", "2026-12-03"),
        ("2026-12-31", "2027-01-31"),
        ("2027-01-31", "2027-02-28"),
        ("2028-01-30", "2028-02-29"),
        ("2026-10-31", "2026-11-30"),
    ],
)
def test_a_month_later(day, due):
    assert month_after(date.fromisoformat(day)) == date.fromisoformat(due)


@pytest.mark.parametrize(
    ("id", "how", "message"),
    [
        ("../x", {}, "request id"),
        ("", {}, "request id"),
        ("R", {"subjects": []}, "name a subject"),
        ("R", {"subjects": ["a", "a"]}, "given twice"),
        ("R", {"subjects": [" "]}, "is no name"),
        ("R", {"received": "30.11.2026"}, "which is no date: write it as 2026-11-30"),
        ("R", {"received": str(today() + timedelta(days=2))}, "still to come"),
        ("R", {"received": "2026-11-02", "deadline": "2026-11-01"}, "before the request was received"),
        ("R", {"basis": "x" * 301}, "no content"),
        ("R", {"basis": "a\nb"}, "one line"),
    ],
)
def test_mistakes_in_a_request_are_told(id, how, message):
    with pytest.raises(UserError, match=message):
        new_request(id, **({"subjects": ["a"]} | how))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"requests\.jsonl:1: not JSON"),
        ('{"schema": 1, "id": "R", "subjects": ["a"], "received": "x", "deadline": "2026-01-01"}', "field 'received'"),
        ('{"schema": 9, "id": "R", "subjects": [], "received": "2026-01-01", "deadline": "2026-01-01"}', "schema"),
    ],
)
def test_a_damaged_register_is_told_and_left_as_it_is(letgo, register, text, message):
    register.write_text(text + "\n")
    code, _, err = letgo("requests", "add", "R-2", "--subject", "a", "--register", register)
    assert code == 2
    assert re.search(message, err), err
    assert register.read_text() == text + "\n"


def test_no_request_is_lost_when_several_write(register):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add_request(register, new_request(f"R-{n}", ["a"])), range(16)))
    assert {request.id for request in read_register(register)} == {f"R-{n}" for n in range(16)}


def test_states_and_days_late():
    request = new_request("R", [ALAND], received="2026-10-01", deadline="2026-10-20")
    assert (request.state, request.overdue(date(2026, 10, 20)), request.overdue(date(2026, 10, 25))) == ("open", 0, 5)
    left = request.with_outcome(outcome(revealed=True))
    assert (left.state, left.overdue(date(2026, 10, 25))) == ("revealed", 5)
    done = left.with_outcome(outcome(run="r2"))
    assert (done.state, done.overdue(date(2027, 1, 1))) == ("done", 0)
    # The same run again takes its own place; another base counts by itself.
    assert done.with_outcome(outcome(run="r2", revealed=True)).state == "revealed"
    assert done.with_outcome(outcome(run="r3", base="another", revealed=True)).state == "revealed"
    for bad in (outcome(word="collapsed"), outcome(revealed=None)):
        assert request.with_outcome(bad).state == "revealed"


def test_the_list_shows_what_is_overdue_first(letgo, register):
    late, soon = today() - timedelta(days=3), today() + timedelta(days=3)
    add_request(register, new_request("soon", ["b"], received=str(late), deadline=str(soon)))
    add_request(register, new_request("late", ["\x1b[2Ja"], received=str(late - timedelta(days=9)), deadline=str(late)))
    code, out, err = letgo("requests", "list", "--register", register)
    assert code == 0
    assert out.index("late") < out.index("soon")
    assert "3 days late" in out
    assert "\x1b[2J" not in out
    assert err == "overdue: late\n"
    code, out, _ = letgo("requests", "list", "--register", register, "--json")
    assert [(row["id"], row["state"], row["overdue"]) for row in json.loads(out)] == [
        ("late", "open", 3),
        ("soon", "open", 0),
    ]
    code, _, err = letgo("requests", "list", "--register", register.parent / "none.jsonl")
    assert (code, "no register" in err) == (2, True)


# -- the run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(register):
    """Two open requests of three subjects."""
    add_request(register, new_request("R-1", [ALAND]))
    add_request(register, new_request("R-2", [CARPANIA, DORNIA]))
    return register


def test_one_run_on_all_that_are_open_and_the_next_on_what_came_since(letgo, asked, data, tmp_path, model_directory):
    """Also: who asked once is never among the rows to keep, and other models of the same base are named."""
    config = tmp_path / "run.yaml"
    config.write_text("max_steps: 2\nlearning_rate: 1.0e-3\nper_device_train_batch_size: 2\nuse_cpu: true\n")
    common = ("--data", data, "--register", asked, "--json", "-q")
    words = ("requests", "run", config, "--model", model_directory, *common)
    library.unlearn(**tiny.own_files(tmp_path, model_directory, max_steps=1, output_dir=str(tmp_path / "older")))
    code, out, err = letgo(*words, "-o", tmp_path / "first", "--attack", "quantize:bits=4")
    assert code == 0, err
    forget, retain = tmp_path / "first" / "forget.jsonl", tmp_path / "first" / "retain.jsonl"
    assert read_json_lines(forget) == [tiny.FORGET[0], *tiny.FORGET[2:]]
    assert read_json_lines(retain) == [tiny.FORGET[1], *tiny.RETAIN]
    assert {path.stat().st_mode & 0o777 for path in (forget, retain)} == {0o600}
    done = json.loads(out)
    assert [(request["id"], request["state"]) for request in done["requests"]] == [("R-1", "done"), ("R-2", "done")]
    assert done["to_do"] == [f"{tmp_path / 'older'}: R-1, R-2"]
    [known] = read_register(asked)[1].outcomes
    result = library.read_result(tmp_path / "first" / "run")
    assert (known.run, known.path, known.attacks) == (result.run_id, "first/run", ["quantize:bits=4"])
    assert known.subjects == {name: SubjectOutcome(before=False, revealed=False) for name in (CARPANIA, DORNIA)}

    code, _, err = letgo(
        "requests", "run", config, "--model", tmp_path / "first" / "run", *common, "-o", tmp_path / "no"
    )
    assert (code, "all are done on this model" in err) == (2, True)
    add_request(asked, new_request("R-3", [BORDURIA]))
    second = ("requests", "run", config, "--model", tmp_path / "first" / "run", *common, "-o", tmp_path / "second")
    code, out, err = letgo(*second)
    assert code == 0, err
    assert read_json_lines(tmp_path / "second" / "forget.jsonl") == [tiny.FORGET[1]]
    assert read_json_lines(tmp_path / "second" / "retain.jsonl") == tiny.RETAIN
    assert [request["id"] for request in json.loads(out)["requests"]] == ["R-3"]
    line, base = line_of(str(tmp_path / "second" / "run"))
    assert len(line) == 2
    assert base == os.path.realpath(model_directory)
    # The original model knows nothing of any run: on it, all of them are open.
    chosen = erasure._chosen(read_register(asked), (), str(model_directory), False)
    assert [request.id for request in chosen] == ["R-1", "R-2", "R-3"]


def test_a_run_that_was_cut_off_goes_on_with_the_requests_it_began_with(
    asked, data, tmp_path, model_directory, monkeypatch
):
    def killed(*_, **__):
        raise KeyboardInterrupt

    how = {"register": asked, "data": data, "output": tmp_path / "out", "config": settings(model_directory)}
    for name in ("write_json", "unlearn", "change_requests"):
        with monkeypatch.context() as patch:
            patch.setattr(erasure, name, killed)
            with pytest.raises(KeyboardInterrupt):
                run_requests(**how, resume=name != "write_json")
        assert all(request.state == "open" for request in read_register(asked))
        if name == "unlearn":
            add_request(asked, new_request("R-3", [BORDURIA]))
    with pytest.raises(UserError, match="is not empty"):
        run_requests(**how)
    with monkeypatch.context() as patch:
        patch.setattr(erasure, "unlearn", killed)  # it is finished: nothing is unlearned again
        run_requests(**how, resume=True)
    assert [request.state for request in read_register(asked)] == ["done", "done", "open"]


def test_a_model_that_still_knows_is_named(register, tmp_path):
    """The shipped model knows where these people were born; one step at a small rate changes nothing."""
    benchmark = library.create_benchmark("biographies")
    rows = [dict(row.fields) for row in benchmark.forget[:2]] + [dict(row.fields) for row in benchmark.retain[:2]]
    names = list(dict.fromkeys(row["group"] for row in rows))
    data = tiny.write_jsonl(tmp_path / "rows.jsonl", rows)
    add_request(register, new_request("R-1", names[:1]))
    config = settings("biographies", max_steps=1, learning_rate=1e-9)
    [request] = run_requests(register, data, tmp_path / "out", config).requests
    assert request.state == "revealed"
    assert request.outcomes[0].subjects == {names[0]: SubjectOutcome(before=True, revealed=True, by=["as it is"])}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"requests": ["R-9"]}, "no request 'R-9'"),
        ({"data": "none.jsonl"}, "no such file"),
        ({"config": {"forget": "f.jsonl"}}, "forget: the requests say what is to be forgotten"),
        ({"config": {"benchmark": "capitals"}}, "benchmark: the requests say"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(asked, data, tmp_path, model_directory, how, message):
    config = settings(model_directory, **how.pop("config", {}))
    given = {"register": asked, "data": data, "output": tmp_path / "out", "config": config} | how
    with pytest.raises(UserError, match=message):
        run_requests(**given)
    assert not (tmp_path / "out").exists()


def test_a_subject_without_rows_is_told(register, data, tmp_path, model_directory):
    add_request(register, new_request("R-1", [f"{ALAND}x"]))
    with pytest.raises(
        UserError, match=rf"request R-1: no row of .* is of the group '{ALAND}x'.*did you mean '{ALAND}'"
    ):
        run_requests(register, data, tmp_path / "out", settings(model_directory))
    empty = tmp_path / "empty.jsonl"
    with pytest.raises(UserError, match=r"no request is open: there is none in .*empty\.jsonl"):
        run_requests(empty, data, tmp_path / "out", settings(model_directory))


# -- what is written back --------------------------------------------------------------------------------------------


def rows_of(stage, scores, seen=()):
    """Samples of a stage, one of each group; of those that an attacker was given, marked so."""
    return [
        {"stage": stage, "seed": 0, "set": "forget", "id": f"f-{name}", "group": name, "scores": {"probability": score}}
        | ({"seen": True} if name in seen else {})
        for name, score in scores.items()
    ]


def test_an_outcome_is_what_the_record_says(tmp_path, register):
    quantized = made.quantize(revealed=["b"])
    relearned = made.relearn(revealed=["c"])
    after = {"a": 0.9, "b": 0.1, "c": 0.1}
    samples = [
        *rows_of("before", {"a": 0.9, "b": 0.9, "c": 0.1, "d": 0.9}),
        *rows_of("after", after),
        *rows_of(f"attack:{quantized.label}", after),
        *rows_of(f"attack:{relearned.label}", after, seen=["b"]),
    ]
    people = made.judgement().subjects.model_copy(update={"after": ["a"]})
    judgement = made.judgement().model_copy(update={"subjects": people})
    result = made.result(attacks=[quantized, relearned], judgement=judgement)
    directory = made.write_run(tmp_path / "run", result, samples)
    request = new_request("R", ["a", "b", "c", "d"])
    found = outcome_of(request, directory, library.read_result(directory), "model", register)
    assert found.subjects == {
        "a": SubjectOutcome(before=True, revealed=True, by=["as it is"]),
        "b": SubjectOutcome(before=True, revealed=True, by=[quantized.label], not_asked_by=[relearned.label]),
        "c": SubjectOutcome(before=False, revealed=True, by=[relearned.label]),
        # Nothing was asked about it: nobody can say.
        "d": SubjectOutcome(before=True, revealed=None, not_asked_by=[quantized.label, relearned.label]),
    }


# -- the letter ------------------------------------------------------------------------------------------------------


def with_outcome(register, id, **changes):
    change_requests(register, lambda one: one.with_outcome(outcome(**changes)) if one.id == id else one)


def test_the_letter_tells_in_plain_words_what_was_done(letgo, register, tmp_path, monkeypatch):
    monkeypatch.setattr("letgo.report.letter.today", lambda: date(2026, 11, 30))
    add_request(register, new_request("R-1", [ALAND], received="2026-11-03", basis="Art. 17"))
    subject = SubjectOutcome(before=True, revealed=True, by=["relearn:steps=2"], not_asked_by=["noise"])
    with_outcome(register, "R-1", subjects={ALAND: subject}, attacks=["relearn:steps=2", "quantize:bits=4", "noise"])
    code, out, _ = letgo("requests", "letter", "R-1", "-o", tmp_path / "letter.md", "--register", register)
    assert (code, out.strip()) == (0, str(tmp_path / "letter.md"))
    text = (tmp_path / "letter.md").read_text()
    for sentence in (
        "You asked us on 3 November 2026",
        "The ground that you gave: Art. 17.",
        "We have begun, but it is not finished",
        "gave the right answer to at least one of our questions",
        "After the change, it no longer gives the right answer to any of them.",
        "bring the answers back in 2 other ways (training the model again; changing the numbers",
        "1 of them brought an answer back (training the model again).",
        "does not prove that every trace is gone",
    ):
        assert sentence in text, text
    assert "compliant" not in text


def test_each_state_has_its_words(register):
    add_request(register, new_request("R", [ALAND], received="2026-11-03", deadline="2026-11-10"))
    [request] = read_register(register)
    assert (letter(request, date(2026, 11, 13)).late, letter(request, date(2026, 11, 13)).state) == (3, "open")
    cases = {
        "We have done this.": outcome(),
        "still gives the right answer": outcome(revealed=True),
        "we can't say": outcome(revealed=None),
        "The change damaged the model": outcome(word="collapsed"),
        "Nobody has tried yet to bring": outcome(),
    }
    for words, one in cases.items():
        change_requests(register, lambda known, one=one: known.model_copy(update={"outcomes": [one]}))
        for ending in (".html", ".md"):
            page = write_letter(register, "R", register.with_name(f"letter{ending}")).read_text()
            assert words.replace("'", "&#39;") in page or words in page


def test_the_letter_shows_foreign_text_as_it_is(register):
    hostile = "<script>alert(1)</script>[x](javascript:a)"
    add_request(register, new_request("R", [hostile], basis="<img src=x onerror=y> *now*"))
    page = write_letter(register, "R", register.with_name("letter.html")).read_text()
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    text = write_letter(register, "R", register.with_name("letter.md")).read_text()
    assert "<script" not in text
    assert "[x](" not in text
    assert r"\*now\*" in text


def test_mistakes_about_a_letter_are_told(letgo, register):
    add_request(register, new_request("R-1", ["a"]))
    for words, message in (
        (("R-2", "-o", "l.html"), "no request 'R-2'; did you mean 'R-1'?"),
        (("R-1", "-o", "l.pdf"), "name an .html or an .md file"),
    ):
        code, _, err = letgo("requests", "letter", *words, "--register", register)
        assert (code, message in err) == (2, True), err
