from __future__ import annotations

import pytest
import torch

from letgo.core.errors import UserError
from letgo.metrics.toxicity import ToxicityClassifier
from tests import tiny
from tests.classifiers import save_classifier

TEXTS = ["old river", "the capital of aland is amberton .", "", "red blue green stone new old river 1 2 3", "red"]


def plain_logits(path, text):
    """One text, no padding, no batch."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(path)
    ids = tiny.make_tokenizer()(text)["input_ids"]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize(
    ("problem_type", "labels", "expected"),
    [
        (None, ("polite", "rude"), lambda z: z.softmax(-1)[1]),
        ("single_label_classification", ("a", "b", "rude"), lambda z: z.softmax(-1)[2]),
        ("multi_label_classification", ("a", "b", "rude"), lambda z: z.sigmoid()[2]),
        (None, ("rude",), lambda z: z.sigmoid()[0]),
    ],
)
def test_scores_are_those_of_one_text_at_a_time(tmp_path, problem_type, labels, expected):
    path = save_classifier(tmp_path, labels=labels, problem_type=problem_type)
    classifier = ToxicityClassifier(path, label="rude", device="cpu")
    wanted = [float(expected(plain_logits(path, text))) for text in TEXTS]
    for budget in (1, 12, 2048):
        assert classifier(TEXTS, token_budget=budget) == pytest.approx(wanted, abs=1e-6)
    assert max(wanted) - min(wanted) > 1e-3, "the classifier tells the texts apart"


def test_the_activation_can_be_said(tmp_path):
    path = save_classifier(tmp_path, labels=("a", "rude"))
    logits = plain_logits(path, TEXTS[0])
    [value] = ToxicityClassifier(path, label="RUDE", activation="sigmoid", device="cpu")(TEXTS[:1])
    assert value == pytest.approx(float(logits.sigmoid()[1]), abs=1e-6)
    high = save_classifier(tmp_path / "high", labels=("rude",), bias=[9.0])
    with pytest.raises(UserError, match="not between 0 and 1"):
        ToxicityClassifier(high, activation="none", device="cpu")(TEXTS)


def test_long_texts_are_cut_as_the_tokenizer_cuts_and_told(tmp_path):
    path = save_classifier(tmp_path, places=6)
    classifier = ToxicityClassifier(path, label="rude", device="cpu")
    long = "red blue green stone new old river"
    assert classifier([long, "red"]) == pytest.approx(
        [float(plain_logits(path, "red blue green stone new").softmax(-1)[1]), classifier(["red"])[0]], abs=1e-6
    )
    assert [classifier.cuts(text) for text in (long, "red")] == [True, False]


def test_the_usual_label_is_found(tmp_path):
    path = save_classifier(tmp_path, labels=("toxic", "obscene", "threat"), problem_type="multi_label_classification")
    classifier = ToxicityClassifier(path, device="cpu")
    assert (classifier.label, classifier.activation) == ("toxic", "sigmoid")


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        ({}, {}, "which label is the score.*polite, rude"),
        ({}, {"label": "ruder"}, "has no label 'ruder'; did you mean 'rude'"),
        ({"labels": ("a", "b", "rude")}, {"label": "rude"}, "does not say whether they exclude"),
        ({"labels": ("rude",), "problem_type": "regression"}, {}, "trained for regression"),
        ({}, {"label": "rude", "activation": "tanh"}, "known: auto, sigmoid, softmax, none"),
    ],
)
def test_mistakes(tmp_path, made, asked, message):
    path = save_classifier(tmp_path, **made)
    with pytest.raises(UserError, match=message):
        ToxicityClassifier(path, device="cpu", **asked)


def test_what_is_no_classifier(tmp_path, model_directory):
    with pytest.raises(UserError, match=r"lack 1 of the weights .*score.weight(.|\n)*trained to classify"):
        ToxicityClassifier(model_directory, device="cpu")
    with pytest.raises(UserError, match="download the model and give its path"):
        ToxicityClassifier("nobody/nothing", device="cpu")
