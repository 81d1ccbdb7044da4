from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from letgo.metrics.memorization import rouge_l_f1, rouge_l_recall
from letgo.metrics.rouge import Rouge, _module_alone, rouge_l

SCORERS = {stem: RougeScorer(["rougeL"], use_stemmer=stem) for stem in (True, False)}
WORDS = st.lists(st.sampled_from(["the", "runs", "running", "Runner", "cat's", "1,000", "—", "é", "it", "is"]))


@settings(max_examples=150, deadline=None)
@given(WORDS.map(" ".join), WORDS.map(" ".join), st.booleans())
def test_is_rouge_score_to_the_bit(answer, generated, stem):
    expected = SCORERS[stem].score(answer, generated)["rougeL"]
    assert rouge_l(answer, generated, stem=stem) == Rouge(expected.recall, expected.precision, expected.fmeasure)


def test_long_texts_too():
    answer = " ".join(f"w{n * n % 37}" for n in range(400))
    generated = " ".join(f"w{n * 7 % 41}" for n in range(300))
    expected = SCORERS[False].score(answer, generated)["rougeL"]
    assert rouge_l(answer, generated, stem=False) == Rouge(expected.recall, expected.precision, expected.fmeasure)


def test_the_stemmer_is_loaded_without_all_else_of_its_package(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "nltk"]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    stemmer = _module_alone("nltk.stem.porter").PorterStemmer()
    words = ["running", "flies", "generously", "dying", "skies"]
    assert [stemmer.stem(word) for word in words] == ["run", "fli", "gener", "die", "sky"]
    assert not {name.split(".")[0] for name in set(sys.modules) - before} & {"nltk", "scipy", "sklearn"}
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        _module_alone("no_such_package.module")


def test_by_hand():
    """Common: red, blue. 2 of 3 words of the answer, 2 of 4 of what was generated."""
    assert rouge_l("red green blue", "red or maybe blue", stem=False) == Rouge(2 / 3, 1 / 2, pytest.approx(4 / 7))
    assert rouge_l_f1("red green blue", "red or maybe blue") == pytest.approx(4 / 7)
    assert rouge_l_recall("the cats", "a big cat sat by the cat") == 1.0
    assert rouge_l_f1("the cats", "the cat") == 0.5, "not stemmed"
    assert rouge_l("", "red", stem=True) == rouge_l("red", "...", stem=True) == Rouge(0.0, 0.0, 0.0)
