"""The language that picks runs: any text is an expression or a mistake that is named, and nothing in it is ever run."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from letgo.core.errors import UserError
from letgo.runs.query import Field, check_field, parse_field, parse_query
from letgo.runs.record import RunRecord
from tests.report import runs as made

# A busy machine is no fault of an expression.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CONFIG = made.result().config
RECORDS = [
    RunRecord.of("a", made.result(run_id="a", attacks=[made.quantize()])),
    RunRecord.of("b", made.result(run_id="b", attacks=[made.relearn()], seed=7), ("mine",)),
    RunRecord.of("c", made.result(run_id="c", attacks=[], config=CONFIG | {"optimizer": "adamw"})),
    RunRecord.of("d", made.result(run_id="d", attacks=[], after=made.metrics(0.9, 0.2, 0.95, 15.0))),
]
CONDITIONS = {
    "optimizer=fozo": "abd",
    "optimizer == 'adamw'": "c",
    "optimizer != fozo": "c",
    "seed > 0": "b",
    "seed<=0": "acd",
    "survived(quantize4)": "a",
    "attacked(*)": "ab",
    "kept(relearn) < 0.5": "b",
    "tag(mi*)": "b",
    "forget_accuracy >= 0.9*before": "d",
    "retain_accuracy = before": "d",
    "id ~ [ab]": "ab",
}
"""Conditions, and the runs that they pick."""


@st.composite
def expressions(draw, depth=4):
    """An expression and the runs that it must pick."""
    kind = draw(st.sampled_from(["condition", "not", "and", "or", "brackets"])) if depth else "condition"
    if kind == "condition":
        text, picked = draw(st.sampled_from(sorted(CONDITIONS.items())))
        return text, set(picked)
    text, picked = draw(expressions(depth=depth - 1))
    if kind == "brackets":
        return f"({text})", picked
    if kind == "not":
        return f"{draw(st.sampled_from(['not', 'NOT']))} ({text})", set("abcd") - picked
    other_text, other = draw(expressions(depth=depth - 1))
    blank = draw(st.sampled_from([" ", "  ", "\n", "\t"]))
    joined = f"({text}){blank}{kind}{blank}({other_text})"
    return joined, picked & other if kind == "and" else picked | other


@unhurried
@given(expressions())
def test_an_expression_picks_what_its_parts_do(expression):
    text, picked = expression
    assert {record.run_id for record in parse_query(text).select(RECORDS)} == picked


@unhurried
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(sorted(CONDITIONS))), min_size=2, max_size=6), st.data())
def test_not_binds_before_and_and_and_before_or(parts, data):
    joins = data.draw(st.lists(st.sampled_from(["and", "or"]), min_size=len(parts) - 1, max_size=len(parts) - 1))
    text = " ".join(
        f"{join} {'not ' if negated else ''}{condition}"
        for join, (negated, condition) in zip(["", *joins], parts, strict=True)
    )
    groups = [set("abcd")]
    for join, (negated, condition) in zip(["and", *joins], parts, strict=True):
        picked = set("abcd") - set(CONDITIONS[condition]) if negated else set(CONDITIONS[condition])
        if join == "and":
            groups[-1] &= picked
        else:
            groups.append(picked)
    assert {record.run_id for record in parse_query(text).select(RECORDS)} == set.union(*groups)


WORDS = [*CONDITIONS, "(", ")", "and", "or", "not", "=", "~", "*", "'", "!", "9**9", "lambda:", "é", "\0", ".", "kept("]


@settings(unhurried, max_examples=300)
@given(st.one_of(st.text(), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)))
def test_any_text_is_an_expression_or_a_mistake_that_is_named(text):
    try:
        picked = parse_query(text).select(RECORDS)
    except UserError:
        return
    assert all(record in RECORDS for record in picked)


@unhurried
@given(st.text())
def test_any_text_is_a_field_or_a_mistake_that_is_named(text):
    try:
        field = parse_field(text)
    except UserError:
        return
    assert isinstance(field, Field)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(" * 5000, "expected a field's name at its end"),
        ("(" * 5000 + "seed=0" + ")" * 5000, "too many brackets and 'not's inside each other; write it flatter"),
        (")" * 5000, r"expected a field's name at '\)+' \(character 1\)"),
        ("not " * 100_000 + "seed=0", "too many brackets and 'not's"),
        ("(not " * 120 + "seed=0" + ")" * 120, "too many brackets and 'not's"),
        ("seed=0)" + "(" * 50, r"expected end of the expression, 'and' or 'or' at '\)\({19}' \(character 7\)"),
        ("__import__('os').system('true')", "unknown __import__.*known: survived, attacked, kept, tag"),
        ("eval(open('x').read())", "unknown eval"),
        ("seed.__class__.__mro__", "expected one of = != .* at its end"),
        ("().__class__ = 1", r"expected a field's name at '\).__class__' \(character 2\)"),
        ("[x for x in y]", r"expected one of = != .* at 'for' \(character 4\)"),
        ("lambda: 0", r"expected one of = != .* at '0' \(character 9\)"),
        ("seed = 9**9**9", r"expected end of the expression, 'and' or 'or' at '\*\*9\*\*9' \(character 9\)"),
        ("seed = lambda: 0", r"expected end of the expression, 'and' or 'or' at '0' \(character 16\)"),
        ("seed := 3", r"expected one of = != .* at ':=' \(character 6\)"),
        ("seed = 0 = 0", r"expected end of the expression, 'and' or 'or' at '=' \(character 10\)"),
        ("seed =< 0", r"expected a value at '<' \(character 7\)"),
        ("kept(quantize4)", "expected one of = != .* at its end"),
        ("optimizer fozo", "expected one of = != .* at 'fozo'"),
        ("seed=", "expected a value at its end"),
        ("(optimizer=fozo", r"expected '\)' at its end"),
        ("survives(quantize4)", "unknown survives.*did you mean 'survived'"),
        ("survived()", "needs an argument"),
        ("retain_accuracy >= fozo*before", "only a number can be multiplied"),
        ("kept(quantize4", r"expected '\)' at its end"),
        ("survived(:bits=4)", "names nothing; the form is NAME or NAME:key=value"),
        ("seed=0 or", "expected a field's name at its end"),
        ("seed=0 or and seed=1", r"expected a field's name at 'and' \(character 11\)"),
        ("optimizer = 'fozo", r"expected a value at \"'fozo\" \(character 13\)"),
        ("\0", "expected one of = != .* at its end"),
        ("séed = 0", "no run has a field 'séed'; did you mean 'seed'"),
        (" \n\t ", "an empty expression picks nothing"),
    ],
)
def test_hostile_or_malformed_text_is_one_clear_message(text, message):
    start = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        parse_query(text).select(RECORDS)
    assert len(str(caught.value)) < 800
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("number", ["9" * 400, "9" * 5000, "1e400", "-1e400", "nan", "9" * 400 + "*before"])
def test_a_number_beyond_all_measure_is_compared(number):
    assert parse_query(f"seed = {number} or forget_accuracy = {number}").select(RECORDS) == []


def test_a_long_flat_expression_is_no_deep_one():
    text = " or ".join(["(seed=7 and not optimizer=adamw)"] * 3000)
    assert [record.run_id for record in parse_query(text).select(RECORDS)] == ["b"]


def test_words_of_python_and_letters_of_any_script_are_plain_words():
    record = RunRecord.of("x", made.result(config=CONFIG | {"objective": "lambda", "größe": "weiß", "class": "None;"}))
    for text in ("objective=lambda", "größe = weiß", "class ~ None*", "größe ~ '*ß'"):
        assert parse_query(text).select([record]) == [record]


def test_a_field_alone_takes_nothing_behind_it():
    assert parse_field(" kept( quantize4 ) ") == Field("kept", "quantize4")
    with pytest.raises(UserError, match=r"expected a field alone.* at '<' \(character 6\)"):
        parse_field("seed < 3")
    with pytest.raises(UserError, match="no run has a field 'sed'; did you mean 'seed'"):
        check_field(parse_field("sed"), RECORDS)
