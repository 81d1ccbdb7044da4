from __future__ import annotations

import pytest

from letgo.core.sizes import size
from letgo.report.card import card
from letgo.report.numbers import duration, interval, number, percent
from letgo.report.verdict import overall, verdict
from tests.report.runs import AFTER, BEFORE, judgement, metric, metrics, quantize, relearn, result


def test_names_what_fell_what_it_cost_and_what_came_back():
    found = verdict(result())
    assert (found.tone, found.kind) == ("warn", "attacked")
    assert found.headline == "Forgotten, but the forgetting did not survive relearn."
    why, revealed, forgotten, cost, hardest, other = found.sentences
    assert why == "Forget accuracy went 93 %."
    assert revealed.startswith("0 of 20 subjects are revealed by some wording, under some attack (by a one-sided")
    assert forgotten == (
        "Forget accuracy fell from 1.00 to 0.50 and forget probability fell from 0.32 to 0.017 (19 times lower)."
    )
    assert cost == "Retain accuracy fell from 0.95 to 0.90 and general perplexity rose from 14.2 to 15.1 (+6 %)."
    assert "brings back 69 % of the forgetting" in hardest
    assert "forget accuracy 0.77, the original attacked likewise 1.00, chance 0.25 on held-out rows" in hardest
    assert hardest.endswith("not survived, for 23 % is sure to be kept and 50 % is asked.")
    assert "quantize:bits=4" in other
    assert "forget accuracy 0.32, the original attacked likewise 0.95" in other
    assert other.endswith(": survived, for 82 % is sure to be kept and 50 % is asked.")


def test_subjects_are_named_in_the_run_and_never_in_a_card():
    revealed = result(judgement=judgement(), attacks=[quantize(revealed=["Peru"])])
    found = verdict(revealed)
    assert found.tone == "warn", "green is for what can be acted on"
    assert "1 of 20 subjects are revealed" in " ".join(found.sentences)
    assert "Peru" in " ".join(found.sentences)
    assert "Peru" not in " ".join(verdict(revealed, names=False).sentences)
    assert "Peru" not in card(revealed)
    assert "1 of 20 subjects are revealed" in card(revealed)


@pytest.mark.parametrize(
    ("changes", "tone", "kind", "headline", "last"),
    [
        (
            {"attacks": [quantize()]},
            *("good", "survived", "Forgotten, and the forgetting survived the attack on it.", "50 % is asked."),
        ),
        ({"attacks": [relearn()]}, "bad", "attacked", "did not survive relearn", "50 % is asked."),
        (
            {"status": "failed", "reasons": ["loss is nan at step 12"], "before": {}, "after": {}, "attacks": []},
            *("bad", "failed", "there is nothing to judge", "Loss is nan at step 12."),
        ),
        ({"attacks": []}, "warn", "untested", "whether it lasts is not known", "(+6 %)."),
        (
            {"after": metrics(0.98, 0.31, 0.95, 14.2), "judgement": judgement("not forgotten")},
            *("bad", "not", "Not forgotten.", "say nothing about robustness."),
        ),
        (
            {"judgement": judgement("nothing to forget"), "attacks": []},
            *("bad", "nothing", "Nothing to forget: the model did not know it.", "(+6 %)."),
        ),
        (
            {"judgement": judgement("partly forgotten"), "attacks": [quantize()]},
            *("warn", "partly", "Partly forgotten, and the forgetting survived the attack on it.", "50 % is asked."),
        ),
        (
            {"attacks": [quantize(kept=None, survived=False, bound=None), relearn(kept=0.9, survived=True)]},
            *("warn", "attacked", "Forgotten, but under quantize the original no longer knows either", "."),
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
    assert ("(their 95 % intervals overlap)" in " ".join(judged.sentences)) == (kind == "not")


def test_collapsed_is_not_called_forgetting():
    reasons = ["general perplexity more than doubled: 14.2 → 8.1e12"]
    found = verdict(result(status="collapsed", reasons=reasons, after=metrics(0.25, 1e-9, 0.25, 8.1e12), attacks=[]))
    assert found.tone == "bad"
    assert found.headline == "Collapsed: the model is broken, which is not forgetting."
    assert found.sentences[0] == "General perplexity more than doubled: 14.2 → 8.1e12."
    assert "times" in found.sentences[-1]


def test_what_was_not_measured_is_not_spoken_of():
    only = {"forget_knowmem": metric(0.6)}
    found = verdict(result(before=only, after={"forget_knowmem": metric(0.1)}, attacks=[], judgement=None))
    assert found.sentences == ("Forget knowmem fell from 0.60 to 0.10.",)
    assert found.kind == "unmeasured"
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
    assert "quantize:bits=2 brings back 80 %" in found.sentences[5]
    assert len(found.sentences) == 8


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


def test_numbers():
    values = (None, 0, 1.0, 0.999, 0.5, 0.0995, 0.017, 0.0042, 0.0001749, 3.2e-300, 9.996, 14.23, 999.96, 12345.6)
    texts = "– 0.00 1.00 1.00 0.50 0.10 0.017 0.0042 1.7e-4 3.2e-300 10.0 14.2 1,000 12,346"
    assert " ".join(map(number, values)) == texts
    assert [number(8.1e12), number(-0.25)] == ["8.1e12", "−0.25"]


def test_other_units():
    assert interval(metric(0.1, -0.05, 0.2)) == "−0.050 to 0.20"
    assert interval(BEFORE["forget_accuracy"]) == "0.91–1.00"
    assert interval(AFTER["forget_probability"]) == "0.014–0.019"
    assert [percent(x) for x in (0.0, 0.004, 0.31, 0.996, 1.0)] == ["0 %", "<1 %", "31 %", ">99 %", "100 %"]
    assert [duration(x) for x in (4.21, 41, 185, 7800)] == ["4.2 s", "41 s", "3 min 05 s", "2 h 10 min"]
    counts = (0, 12, 999, 1500, 999_600, 2.5e8, 2_345_678_901, 999_996_000_000, 4e12)
    assert ", ".join(map(size, counts)) == "0 B, 12 B, 999 B, 1.5 KB, 1 MB, 250 MB, 2.35 GB, 1.00 TB, 4.00 TB"
