from __future__ import annotations

import pytest

from letgo.core.sizes import size
from letgo.report.numbers import duration, interval, number, percent
from letgo.report.verdict import overall, verdict
from tests.report.runs import AFTER, BEFORE, metric, metrics, quantize, relearn, result


def test_names_what_fell_what_it_cost_and_what_came_back():
    found = verdict(result())
    assert (found.tone, found.kind) == ("warn", "attacked")
    assert found.headline == "Forgotten, but the forgetting did not survive relearn."
    forgotten, cost, hardest, other = found.sentences
    assert forgotten == (
        "Forget accuracy fell from 1.00 to 0.50 and forget probability fell from 0.32 to 0.017 (19 times lower)."
    )
    assert cost == "Retain accuracy fell from 0.95 to 0.90 and general perplexity rose from 14.2 to 15.1 (+6 %)."
    assert "brought back 69 % of the forgetting" in hardest
    assert "forget accuracy 0.52 → 0.85 on held-out rows" in hardest
    assert hardest.endswith("not survived.")
    assert "quantize:bits=4" in other
    assert "0.50 → 0.55" in other
    assert other.endswith(": survived.")


@pytest.mark.parametrize(
    ("changes", "tone", "kind", "headline", "last"),
    [
        (
            {"attacks": [quantize()]},
            *("good", "survived", "Forgotten, and the forgetting survived the attack on it.", "survived."),
        ),
        ({"attacks": [relearn()]}, "bad", "attacked", "did not survive relearn", "not survived."),
        (
            {"status": "failed", "reasons": ["loss is nan at step 12"], "before": {}, "after": {}, "attacks": []},
            *("bad", "failed", "there is nothing to judge", "Loss is nan at step 12."),
        ),
        ({"attacks": []}, "warn", "untested", "whether it lasts is not known", "(+6 %)."),
        (
            {"after": metrics(0.98, 0.31, 0.95, 14.2)},
            *("bad", "nothing", "Hardly anything was forgotten.", "say nothing about robustness."),
        ),
        (
            {"after": metrics(0.3, 0.01, 0.5, 15.0), "attacks": [quantize()]},
            *("warn", "survived", "Forgotten, at a high cost to what it should keep, and the forgetting survived", "."),
        ),
        (
            {"attacks": [quantize(kept=1.0, survived=False, collapsed=True)]},
            *("warn", "attacked", "broke the model, which proves nothing", "not counted as survived."),
        ),
    ],
)
def test_what_a_run_comes_down_to(changes, tone, kind, headline, last):
    judged = verdict(result(**changes))
    assert (judged.tone, judged.kind) == (tone, kind)
    assert headline in judged.headline
    assert judged.sentences[-1].endswith(last)
    assert judged.mark == {"good": "✓", "warn": "!", "bad": "✗"}[tone]
    assert ("(their 95 % intervals overlap)" in judged.sentences[0]) == (kind == "nothing")


def test_collapsed_is_not_called_forgetting():
    reasons = ["general perplexity more than doubled: 14.2 → 8.1e12"]
    found = verdict(result(status="collapsed", reasons=reasons, after=metrics(0.25, 1e-9, 0.25, 8.1e12), attacks=[]))
    assert found.tone == "bad"
    assert found.headline == "Collapsed: the model is broken, which is not forgetting."
    assert found.sentences[0] == "General perplexity more than doubled: 14.2 → 8.1e12."
    assert "times" in found.sentences[-1]


def test_what_was_not_measured_is_not_spoken_of():
    only = {"forget_knowmem": metric(0.6)}
    found = verdict(result(before=only, after={"forget_knowmem": metric(0.1)}, attacks=[]))
    assert found.sentences == ("Forget knowmem fell from 0.60 to 0.10.",)
    assert verdict(result(before={}, attacks=[])).kind == "unmeasured"


def test_a_model_that_was_to_learn_is_not_told_that_it_forgot_nothing():
    base = result()
    learned = base.model_copy(
        update={"config": base.config | {"benchmark": "tofu:split=forget01,learn=full"}, "after": base.before}
    )
    found = verdict(learned)
    assert (found.tone, found.kind) == ("warn", "learned")
    assert found.headline == "Fine-tuned: it learned; nothing was to be forgotten."


def test_many_attacks_are_counted_and_the_hardest_told_first():
    attacks = [quantize(settings={"bits": b}, kept=b / 10, survived=b >= 5) for b in range(2, 9)]
    found = verdict(result(attacks=attacks))
    assert "Of 7 attacks 4 were survived; the hardest:" in found.sentences
    assert "quantize:bits=2 brought back 80 %" in found.sentences[3]
    assert len(found.sentences) == 6


def test_overall_counts_each_kind():
    named = [
        ("a", verdict(result(attacks=[quantize()]))),
        ("b", verdict(result())),
        ("c", verdict(result(status="collapsed"))),
    ]
    found = overall(named)
    assert found.headline == "1 of 3 runs forgot and survived every attack made."
    assert found.sentences[0] == "1 forgot and survived every attack made: a."
    assert len(found.sentences) == 3
    assert "none was attacked" in overall([("d", verdict(result(attacks=[])))]).headline
    assert overall([("c", verdict(result(status="failed")))]).tone == "bad"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0.00"),
        (1.0, "1.00"),
        (0.999, "1.00"),
        (0.5, "0.50"),
        (0.0995, "0.10"),
        (0.017, "0.017"),
        (0.0042, "0.0042"),
        (0.0001749, "1.7e-4"),
        (3.2e-300, "3.2e-300"),
        (9.996, "10.0"),
        (14.23, "14.2"),
        (999.96, "1,000"),
        (12345.6, "12,346"),
        (8.1e12, "8.1e12"),
        (-0.25, "−0.25"),
    ],
)
def test_numbers(value: float | None, text: str):
    assert number(value) == text


def test_other_units():
    assert interval(metric(0.1, -0.05, 0.2)) == "−0.050 to 0.20"
    assert interval(BEFORE["forget_accuracy"]) == "0.91–1.00"
    assert interval(AFTER["forget_probability"]) == "0.014–0.019"
    assert [percent(x) for x in (0.0, 0.004, 0.31, 0.996, 1.0)] == ["0 %", "<1 %", "31 %", ">99 %", "100 %"]
    assert [duration(x) for x in (4.21, 41, 185, 7800)] == ["4.2 s", "41 s", "3 min 05 s", "2 h 10 min"]
    counts = (0, 12, 999, 1500, 999_600, 2.5e8, 2_345_678_901, 999_996_000_000, 4e12)
    assert [size(x) for x in counts] == [
        "0 B", "12 B", "999 B", "1.5 KB", "1 MB", "250 MB", "2.35 GB", "1.00 TB", "4.00 TB"
    ]  # fmt: skip
