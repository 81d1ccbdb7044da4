from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from letgo.analysis.certificate import certificate
from letgo.analysis.landscape import landscape
from letgo.analysis.neighbours import scales_of
from letgo.analysis.records import read_analyses
from letgo.analysis.reveal import criterion_of, parsed, says
from letgo.analysis.smoothing import certified_radius, noisy_outcome
from letgo.analysis.weights import Weights
from letgo.benchmarks import benchmark_of
from letgo.core.errors import UserError
from letgo.models.load import load_model, weights_fingerprint
from letgo.runs.results import read_result, write_result
from tests.analysis.conftest import SAME
from tests.report.runs import quantize, relearn

QUICK = {"draws": 20, "limit": 3, "utility_draws": 1, "alpha": 0.05}


def saved(directory):
    return {name: p.detach() for name, p in load_model(directory).named_parameters()}


def test_a_run(run, original):
    found = certificate(run, **QUICK)
    assert found.model_dump(exclude=SAME) == certificate(run, **QUICK).model_dump(exclude=SAME)
    [entry] = read_analyses(run)
    assert entry.model_dump(exclude=SAME) == found.model_dump(exclude=SAME)
    [one] = found.smoothed
    apart = math.sqrt(sum(float((saved(run)[n] - p).double().square().sum()) for n, p in saved(original).items()))
    # By default the noise as a whole is as large as what unlearning moved.
    assert one.noise_norm == pytest.approx(apart, rel=1e-6)
    by_name = {d.name: d for d in found.displacements}
    assert by_name["unlearning"].value == pytest.approx(apart, rel=1e-6)
    assert by_name["quantize:bits=8"].value == 0.125
    assert by_name["quantize:bits=8"].note == "recorded"
    [relearned] = [d for d in found.displacements if d.name.startswith("relearn")]
    assert relearned.value > 0
    assert relearned.note == "run again, seed 3"
    assert len(one.questions) == 3
    assert all(question.bound.alpha == pytest.approx(0.05 / 3) for question in one.questions)
    assert one.together.radius == pytest.approx(certified_radius(one.sigma, one.together.p_lower))
    for reach in one.reach:
        assert reach.inside == (reach.displacement < one.together.radius)
    assert {"retain_probability", "general_perplexity"} <= one.utility.keys()
    assert not any(name.startswith("forget_") for name in one.utility)


def test_what_never_reveals_has_the_radius_that_the_draws_allow(run):
    found = certificate(run, sigma=0.01, reveals="probability>=1.1", rerun=False, **QUICK)
    [one] = found.smoothed
    assert one.together.revealed == 0
    assert one.together.p_lower == pytest.approx(0.05 ** (1 / 20))
    assert one.together.radius == pytest.approx(certified_radius(0.01, 0.05 ** (1 / 20)))
    assert one.questions[0].bound.p_lower == pytest.approx((0.05 / 3) ** (1 / 20))
    said = " ".join(found.certified)
    assert "With confidence 95 %" in said
    assert f"R = {one.together.radius:.3g}" in said
    assert "l2 norm" in said
    assert "each of 3 of the 3 questions" in said
    assert any("model without noise" in sentence for sentence in found.not_certified)
    assert any("not in the record" in d.note for d in found.displacements)


def test_what_always_reveals_is_not_certified(run):
    found = certificate(run, sigma=0.01, reveals="probability>=0", rerun=False, **QUICK)
    [one] = found.smoothed
    assert one.together.radius == 0.0
    assert one.together.p_lower == 0.0
    assert found.plain_revealed == 3
    assert any(sentence.startswith("Nothing is certified") for sentence in found.certified)
    assert not any(reach.inside for reach in one.reach)
    assert all(reach.reveals_at_most == 1.0 for reach in one.reach)


def test_a_metric_of_the_whole_set_is_one_event(run):
    found = certificate(run, sigma=0.01, reveals="forget_probability>=0.9", rerun=False, **QUICK)
    [one] = found.smoothed
    assert one.questions == []
    assert one.together.alpha == 0.05
    assert "forget probability is at least 0.9 over these 3 questions" in " ".join(found.certified)


def test_several_sigmas_share_alpha_and_a_broken_model_is_called_so(run):
    found = certificate(run, sigma=[0.01, 50.0], reveals="greedy", rerun=False, **QUICK)
    small, large = found.smoothed
    assert small.together.alpha == large.together.alpha == pytest.approx(0.025)
    assert large.questions[0].bound.alpha == pytest.approx(0.05 / 6)
    assert large.collapsed
    assert any("is broken" in sentence for sentence in found.certified)


def test_relative_noise_measures_everything_in_its_own_metric(run, original):
    found = certificate(run, relative=True, **QUICK)
    model = load_model(run)
    scale = scales_of(Weights(model))
    name = "model.layers.0.mlp.up_proj.weight"
    weight = model.get_parameter(name).detach()
    assert scale[name] == pytest.approx(float(weight.square().mean().sqrt()), rel=1e-5)
    apart = math.sqrt(
        sum(float((saved(run)[n] - p).double().square().sum()) / scale[n] ** 2 for n, p in saved(original).items())
    )
    by_name = {d.name: d for d in found.displacements}
    assert by_name["unlearning"].value == pytest.approx(apart, rel=1e-5)
    # The recorded displacement is of another norm, so the attack was run again.
    assert by_name["quantize:bits=8"].note.startswith("run again")
    assert any("rescaled" in sentence for sentence in found.not_certified)


def test_attacks_that_leave_the_weights_are_named_and_not_run(run):
    recorded = read_result(run)
    asked = relearn(name="paraphrase", settings={}, did={})
    searched = quantize(settings={"granularity": "group", "search": 3, "bound": 0.1}, did={"strongest": {"bits": 2}})
    write_result(run, recorded.model_copy(update={"attacks": [asked, searched]}))
    found = {d.name: d for d in certificate(run, sigma=0.01, **QUICK).displacements}
    assert found["paraphrase"].value is None
    assert "leaves the weights as they are" in found["paraphrase"].note
    # What a search found strongest is run again, once.
    direct = landscape(run, directions=["attack:quantize:granularity=group,bits=2"], points=3, limit=1)
    again = found["quantize:granularity=group,search=3,bound=0.1"]
    assert again.value == pytest.approx(direct.axes[0].norm, rel=1e-6)


def test_zero_weights_have_a_scale():
    with torch.random.fork_rng():
        model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.zero_()
    scale = scales_of(Weights(model))
    assert scale["weight"] == 2.0
    assert scale["bias"] == pytest.approx(math.sqrt(16 / 6))


def test_draws_that_give_no_finite_scores_reveal_nothing_and_are_counted(run):
    found = certificate(run, sigma=1e39, rerun=False, **QUICK)
    [one] = found.smoothed
    assert one.broken == 20
    assert one.together.revealed == 0
    assert one.collapsed == ["it gives no finite scores"]
    assert one.utility == {}


def test_the_run_is_left_as_it_is(run, tmp_path):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    certificate(run, output=tmp_path / "elsewhere", **QUICK)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert (tmp_path / "elsewhere" / "analysis-certificate.json").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"sigma": [0.1, -1.0]}, "sigma must be above 0"),
        ({"sigma": [0.1, 0.1]}, "several different ones"),
        ({"sigma": []}, "one sigma"),
        ({"alpha": 0.6}, "alpha"),
        ({"draws": 6, "alpha": 0.01}, r"(?s)6 draws can certify nothing at alpha 0.01.*at least 7 draws"),
        ({"draws": 7, "alpha": 0.01, "sigma": [0.1, 0.2]}, "shared by 2 sigmas"),
        ({"draws": 0}, "can certify nothing"),
        ({"reveals": "hearsay"}, "is not known; give auto, choice, greedy"),
        ({"reveals": "nonsense>=0.5"}, "has no score 'nonsense'; it has probability"),
        ({"reveals": "forget_nonsense>=0.5"}, "no metric 'forget_nonsense'"),
        ({"share": 0.0}, "share"),
        ({"utility_draws": 0}, "utility_draws"),
        ({"seed": -1}, "seed"),
        ({"benchmark": "nothing"}, "unknown benchmark"),
    ],
)
def test_refused(run, settings, message):
    with pytest.raises(UserError, match=message):
        certificate(run, **QUICK | {"rerun": False} | settings)


def test_too_few_draws_for_single_questions_are_said(run):
    found = certificate(run, sigma=0.01, rerun=False, **QUICK | {"draws": 5})
    assert "5 draws are too few for single questions: with 3 of them, at least 6 are needed" in found.notes[0]


def test_a_model_that_is_no_run_needs_data_and_a_sigma(original):
    with pytest.raises(UserError, match="is not a run directory"):
        certificate(original, **QUICK)
    with pytest.raises(UserError, match="give a sigma"):
        certificate(original, benchmark="capitals", **QUICK)


@pytest.mark.parametrize(
    ("generated", "answer", "said"),
    [
        ("The capital is Porto-Novo.", "porto novo", True),
        ("Parisian", "Paris", False),
        ("Novo Porto", "Porto Novo", False),
        ("", "Paris", False),
        ("It is Yamoussoukro!", "Yamoussoukro", True),
    ],
)
def test_an_answer_is_said_when_its_words_stand_in_a_row(generated, answer, said):
    assert says(generated, answer) is said


def test_criteria(run):
    benchmark = benchmark_of(read_result(run).config)
    auto = criterion_of("auto", benchmark, limit=2, share=0.5)
    assert auto.text == "choice"
    assert len(auto.benchmark.items) == 2
    assert auto.together([True, False])
    assert not auto.together([False, False])
    assert parsed("rouge >= 0.5") == ("rouge", 0.5)
    plain = criterion_of("greedy", benchmark, limit=None, share=1.0)
    assert not plain.together([True, True, False, True])
    assert all(item.wrong == () for item in plain.benchmark.items)


def test_weights_are_restored_after_every_draw(run):
    seen = []
    model = load_model(run)
    before = weights_fingerprint(model)
    weights = Weights(model)

    def judge():
        seen.append(weights_fingerprint(model))
        return [True]

    for number in range(3):
        noisy_outcome(weights, judge, 0.1, 0, number)
    assert len({before, *seen}) == 4
    assert weights_fingerprint(model) == before


def test_a_document_of_another_schema_or_none_is_refused(run):
    path = run / "analysis-certificate.json"
    path.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_analyses(run)
    path.write_text(json.dumps({"schema": 2, "kind": "certificate", "entries": []}))
    with pytest.raises(UserError, match="written by a newer letgo"):
        read_analyses(run)
    path.write_text(json.dumps({"schema": 1, "kind": "certificate", "entries": [{"kind": "certificate"}]}))
    with pytest.raises(UserError, match=r"entries\.0"):
        read_analyses(run)


def test_without_anything_to_keep_utility_is_said_to_be_unknown(run, monkeypatch):
    whole = benchmark_of(read_result(run).config)
    bare = replace(whole, items=[item for item in whole.items if item.set == "forget"], texts=[])
    monkeypatch.setattr("letgo.attacks.engine.target.benchmark_of", lambda config, **_: bare)
    found = certificate(run, sigma=0.01, rerun=False, **QUICK)
    assert found.plain_utility == found.smoothed[0].utility == {}
    assert found.smoothed[0].collapsed == []
    assert "nothing to measure utility on" in found.notes[0]
