"""Attacks one after another: each on what the one before it left, and judged as one attack."""

from __future__ import annotations

import pytest

import letgo
from letgo.attacks.engine.base import Victim
from letgo.attacks.engine.cost import evaluations, passes, trains
from letgo.attacks.engine.run import run_attack
from letgo.attacks.engine.spec import apply_attack, check_attacks, missing_attacks, plan_attack, plan_attacks
from letgo.attacks.engine.target import measured, open_target
from letgo.auditing.gate import check
from letgo.benchmarks import create_benchmark
from letgo.core.errors import UserError
from letgo.core.progress import Quiet
from letgo.metrics.robustness import utility_names
from letgo.report.attacks import lines
from letgo.report.limits import limits
from letgo.report.table import short_labels
from letgo.runs.record import AttackSummary, attack_matches
from letgo.runs.results import read_result
from tests import tiny
from tests.reference.attacks import chain_over_the_disk
from tests.report import runs as made_runs

RELEARN = "relearn:steps=2,learning_rate=0.001"


@pytest.fixture(scope="module")
def target(saved):
    asked = {"benchmark": saved.benchmark, "original": str(saved.original), "limit": 4, "dtype": None}
    return measured(open_target(saved.forms["full"], **asked, reporter=Quiet()))


def made(target, spec):
    return run_attack(target, plan_attack(spec, seeds=1))


@pytest.mark.parametrize(
    "spec",
    [
        "quantize:bits=4 then noise:sigma=0.01,seed=3",
        f"{RELEARN},lora=2 then {RELEARN},data=retain then quantize:bits=3",
        "prune:sparsity=0.2 then noise:sigma=0.01 then interpolate:share=0.5",
    ],
)
def test_a_chain_equals_its_links_over_the_disk(target, tmp_path, spec):
    plan, victim = plan_attack(spec), target.victim()
    attacked = apply_attack(victim, plan, plan.settings, plan.seeds[0])
    by_hand = chain_over_the_disk(victim, plan.links, plan.seeds[0], tmp_path)
    theirs = by_hand.model.state_dict()
    assert all(value.equal(theirs[name]) for name, value in attacked.model.state_dict().items())
    assert [link["attack"].partition(":")[0] for link in attacked.links] == [name for name, _ in plan.links]
    assert attacked.links[-1].items() >= by_hand.did.items()
    saved = dict(victim.load().named_parameters())
    moved = (
        sum(float((p - saved[n]).detach().double().square().sum()) for n, p in attacked.model.named_parameters()) ** 0.5
    )
    assert attacked.did["displacement"] == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize("last", ["quantize:bits=4", "prefill", "sample:k=2"])
def test_after_a_link_that_does_nothing_a_chain_is_its_last_link(target, saved, last):
    """To the bit, also in what is said of the two ends."""
    plain, rows = made(target, last)
    chained, rows_of_chain = made(target, f"external:path={saved.forms['full']} then {last}")
    for name in ("metrics", "kept", "kept_ci95", "bound", "shares", "revealed", "survived", "why", "utility"):
        assert getattr(chained, name) == getattr(plain, name), name
    assert [row | {"stage": ""} for row in rows_of_chain] == [row | {"stage": ""} for row in rows]


@pytest.mark.parametrize("last", ["prefill", "sample:k=2"])
def test_what_a_chain_that_ends_by_asking_costs_is_the_cost_of_its_weights(target, last):
    noise = "noise:sigma=0.05"
    weights, _ = made(target, noise)
    chained, _ = made(target, f"{noise} then {last}")
    names = utility_names(target.recorded.headlines, weights.metrics)
    assert {name: chained.metrics[name] for name in names} == {name: weights.metrics[name] for name in names}
    assert chained.utility_loss == weights.utility_loss > 0
    assert chained.reasons == weights.reasons
    assert [point["step"] for point in chained.curve] == [0.0, 1.0], "a look at the saved model and at what noise left"


def test_a_model_that_a_link_broke_has_not_survived_what_asks_it(target):
    broken, _ = made(target, "noise:sigma=10 then prefill")
    assert broken.collapsed
    assert not broken.survived


def test_each_look_is_judged_between_the_two_ends(target):
    chained, _ = made(target, f"{RELEARN} then quantize:bits=8")
    alone, _ = made(target, RELEARN)
    assert [point["step"] for point in chained.curve] == [0.0, 1.0, 2.0]
    assert all(0 <= point["kept"] <= 1 for point in chained.curve)
    assert chained.curve[1]["forget_probability"] == alone.curve[-1]["forget_probability"]
    assert chained.curve[1]["original_forget_probability"] == alone.curve[-1]["original_forget_probability"]
    assert chained.scores == {}, "neither R nor Q is of a chain"
    assert not {"steps_to_half", "kept_over_course"} & chained.did.keys()
    assert chained.part == alone.part == "held-out rows"
    printed = lines(chained)
    assert any(line.startswith(f"link 1, {RELEARN}: the weights moved by") for line in printed)
    assert any(line.startswith("link 2, quantize:bits=8: the weights moved by") for line in printed)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("membership then quantize", "membership leaves the weights as they are: in a chain it can only stand last"),
        ("noise then prefill then quantize", "prefill leaves the weights as they are"),
        ("noise then sample then sample", "sample leaves"),
        ("noise then nose", "unknown attack 'nose'; did you mean 'noise'"),
        ("noise:sigma=0 then quantize", "attack 'noise': sigma must be"),
        ("noise then quantize:bits=9", "attack 'quantize': bits must be"),
        ("noise:seeds=2 then quantize:seeds=3", "seeds is of the whole chain"),
        ("noise:seed=2 then noise:seed=3", "seed is of the whole chain"),
        ("noise then quantize:search=3", "a chain is not searched"),
        ("noise:threshold=2 then quantize", "threshold must be"),
        ("noise then external:path=.", "in a chain it can only stand first"),
        ("noise then exported", "in a chain it can only stand first"),
        ("noise then relearn:base=exported", "in a chain it can only stand first"),
        (
            "quantize_bnb:packed then noise",
            "packed weights can't be changed further: in a chain it can only stand last",
        ),
        ("noise then relearn:holdout=1", "holdout must be"),
        ("noise then", "unknown attack 'noise then'"),
    ],
)
def test_chains_that_can_not_be_are_refused_before_there_is_a_model(spec, message):
    with pytest.raises(UserError, match=message):
        plan_attacks([spec])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("relearn:holdout=0.05 then quantize", "holds out none"),
        ("quantize then relearn:holdout=0.05", "holds out none"),
        ("noise then in_context:shots=9", "no forget item"),
        ("noise then membership", "no forget and holdout texts"),
    ],
)
def test_each_link_is_checked_against_the_data(spec, message):
    data = create_benchmark("rows", forget=tiny.FORGET, retain=tiny.RETAIN)
    with pytest.raises(UserError, match=message):
        check_attacks([plan_attack(spec)], Victim("", data))
    check_attacks([plan_attack("relearn then quantize then suffix")], Victim("", data))


def test_settings_of_the_whole_chain_stand_in_any_link():
    first, last = (
        plan_attack("relearn:data=benign,seeds=2,threshold=0.7,seed=4 then requantize"),
        plan_attack("relearn:data=benign then requantize:seeds=2,threshold=0.7,seed=4"),
    )
    assert first == last
    assert (first.seeds, first.threshold, first.label) == ((4, 5), 0.7, "relearn:data=benign then requantize")
    assert plan_attack("quantize then relearn").seeds == (0, 1, 2), "as many as the link that needs most"
    assert plan_attack("quantize then relearn", seeds=1).seeds == (0,)
    assert plan_attack("quantize then prune", seeds=5).seeds == (0,), "nothing in it is random"


def test_aliases_and_space_give_one_label():
    plain = "quantize_gguf:type=q4_0 then quantize then membership"
    assert plan_attack("GGUF:type=q4_0  then\nquantize then mia").label == plain
    assert plan_attack(plain).label == plain
    with pytest.raises(UserError, match="named twice"):
        plan_attacks([plain, "gguf:type=q4_0 then quantize then mia"])
    assert plan_attack("prefill:text=well then I say").links == [("prefill", {"text": "well then I say"})]


def test_a_chain_is_one_attack_wherever_it_is_shown(saved, tmp_path):
    spec, label = "noise:sigma=0.005,seeds=2 then quantize:bits=4", "noise:sigma=0.005 then quantize:bits=4"
    output = tmp_path / "out"
    how = {"benchmark": saved.benchmark, "original": str(saved.original), "limit": 4, "output": output}
    result = letgo.attack(saved.forms["full"], [spec], **how)
    [attack] = result.attacks
    assert (attack.label, attack.seeds) == (label, [0, 1])
    assert read_result(output) == result
    assert missing_attacks([spec], result) == []
    assert missing_attacks(["quantize:bits=4"], result) == ["quantize:bits=4"]
    assert label in (output / "README.md").read_text()
    assert label in result.audit.attacks
    assert any(label in sentence for sentence in limits(result))
    again = letgo.attack(saved.forms["full"], ["quantize:bits=4", spec], **how)
    assert [attack.label for attack in again.attacks] == [label, "quantize:bits=4"]
    assert again.attacks[0].model_dump(exclude={"seconds"}) == attack.model_dump(exclude={"seconds"})


def test_patterns_name_a_chain_link_by_link():
    chain = AttackSummary(
        name="relearn:steps=5,data=benign then quantize",
        settings={"bits": 4},
        kept=None,
        survived=False,
        outcome="can't tell",
    )
    for pattern in (
        chain.label,
        "*",
        "* then *",
        "relearn then quantize",
        "relearn:data=benign then quantize4",
        "relearn5 then quantize:bits=4",
    ):
        assert attack_matches(chain, pattern), pattern
    for pattern in (
        "relearn",
        "quantize:bits=4",
        "quantize then relearn",
        "relearn:data=retain then quantize",
        "relearn then quantize3",
        "* then * then *",
    ):
        assert not attack_matches(chain, pattern), pattern


def test_short_labels_keep_chains_apart():
    chains = ["noise:sigma=0.1 then quantize:bits=4", "noise:sigma=0.1 then quantize:bits=8", "noise:sigma=0.1"]
    assert list(short_labels(chains).values()) == [
        "noise:sigma=0.1 then quantize bits=4",
        "noise:sigma=0.1 then quantize bits=8",
        "noise",
    ]


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        ("survived(relearn then quantize4)", True),
        ("kept(relearn then quantize) >= 0", True),
        ("kept(relearn then quantize) > 1", False),
        ("survived(*)", True),
        ("survived('relearn:steps=5 then quantize:bits=4')", True),
    ],
)
def test_a_gate_names_a_chain(asked, passed):
    chain = made_runs.quantize(name="relearn:steps=5 then quantize", settings={"bits": 4}, survived=True)
    assert check(made_runs.result(attacks=[chain]), asked).passed is passed
    with pytest.raises(UserError, match="no attack matches"):
        check(made_runs.result(attacks=[chain]), "survived(quantize)")


def test_a_plan_counts_every_link():
    alone, more = plan_attack("relearn:steps=5,seeds=2"), plan_attack("relearn:steps=5,seeds=2 then suffix")
    assert passes(more, 8) == passes(alone, 8) + 2 * passes(plan_attack("suffix"), 8)
    assert evaluations(more) == evaluations(alone) == 2, "the weights have changed, so all is measured again"
    assert trains(more)
    assert not trains(plan_attack("quantize then relearn:lora=2"))
