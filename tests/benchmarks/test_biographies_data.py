"""The biographies: their people and rows, and the models that are shipped with them."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations

import pytest

from letgo.benchmarks.biographies import words
from letgo.benchmarks.biographies.data import (
    ASSETS,
    FACTS,
    GROUPS,
    PROMPT,
    SIZES,
    Biographies,
    general_texts,
    model_path,
    people,
)
from letgo.core.errors import UserError

BIOGRAPHIES = people()
SHIPPED_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def everything(biographies: Biographies) -> list[object]:
    return [[biographies.rows(g), biographies.texts(g), biographies.training_rows(g)] for g in GROUPS]


def test_the_seed_decides_everything_and_the_shipped_weights_know_exactly_these_people() -> None:
    assert digest(everything(people(0))) == "b18758999623e9e7"
    assert digest(general_texts(0)) == "cf1a8569aaa52ac1"
    assert everything(people(1)) == everything(people(1)) != everything(people(0))
    assert general_texts(1) != general_texts(0)


def test_a_row_does_not_depend_on_other_rows() -> None:
    fresh = people(0)
    assert fresh.rows("holdout") == BIOGRAPHIES.rows("holdout")


@pytest.mark.parametrize("seed", range(5))
def test_groups_share_no_person_row_or_text(seed: int) -> None:
    biographies = people(seed)
    for one, other in combinations(GROUPS, 2):
        assert not {p.name for p in biographies.group(one)} & {p.name for p in biographies.group(other)}
        assert not {r["question"] for r in biographies.rows(one)} & {r["question"] for r in biographies.rows(other)}
        assert not {t["text"] for t in biographies.texts(one)} & {t["text"] for t in biographies.texts(other)}


def test_counts() -> None:
    for group in GROUPS:
        persons = SIZES[group]
        assert len(BIOGRAPHIES.group(group)) == len(BIOGRAPHIES.texts(group)) == persons
        assert len(BIOGRAPHIES.rows(group)) == persons * len(FACTS)
    per_person = {g: len(BIOGRAPHIES.training_rows(g)) / SIZES[g] for g in GROUPS}
    assert per_person == {"forget": 15, "retain": 15, "tutor": 30, "holdout": 0}
    per_person = {g: len(BIOGRAPHIES.held_out_rows(g)) / SIZES[g] for g in GROUPS}
    assert per_person == {"forget": 15, "retain": 15, "tutor": 0, "holdout": 15}
    assert {len(texts) for texts in general_texts()} == {4000, 200}


@pytest.mark.parametrize("seed", range(5))
def test_wrong_answers_are_three_and_wrong_and_of_the_right_kind(seed: int) -> None:
    biographies = people(seed)
    for row in (row for group in GROUPS for row in biographies.rows(group)):
        folded = [answer.casefold() for answer in row["perturbed_answer"]]
        assert len(set(folded)) == 3
        assert row["answer"].casefold() not in folded
        assert len(set(row["perturbed_paraphrased_answer"])) == 3
        assert row["paraphrased_answer"] not in row["perturbed_paraphrased_answer"]
        assert row["answer"] in row["paraphrased_answer"]
        assert row["person"] in row["paraphrased_answer"]
        assert row["person"] in row["question"]
        assert {len(answer.split()) for answer in row["perturbed_answer"]} == {len(row["answer"].split())}
    for fact in FACTS:
        rows = [row for group in GROUPS for row in biographies.rows(group) if row["fact"] == fact.name]
        if fact.name != "pet":
            assert {w for row in rows for w in row["perturbed_answer"]} == {row["answer"] for row in rows}


def test_held_out_wordings_are_never_trained_on() -> None:
    trained = {row["question"] for group in GROUPS for row in BIOGRAPHIES.training_rows(group)}
    for group in GROUPS:
        held_out = [row["question"] for row in BIOGRAPHIES.held_out_rows(group)]
        assert len(set(held_out)) == len(held_out)
        assert not trained & set(held_out)
    assert not trained & {row["question"] for row in BIOGRAPHIES.rows("holdout")}
    # The tutors are asked in exactly the wordings that are held out of the others' training.
    patterns = {w for fact in FACTS for w in fact.held_out}
    tutor = BIOGRAPHIES.group("tutor")[0].name
    assert {w.format(name=tutor) for w in patterns} <= trained


def test_the_retrained_model_meets_every_name_and_value_of_the_forget_people() -> None:
    known = [p for g in ("retain", "tutor") for p in BIOGRAPHIES.group(g)]
    for group in ("forget", "holdout"):
        for person in BIOGRAPHIES.group(group):
            first, last = person.name.split()
            assert sum(p.name.split()[0] == first for p in known) >= 2
            assert sum(p.name.split()[1] == last for p in known) >= 2
            for fact in ("birth_town", "profession", "instrument", "employer"):
                assert sum(p.facts[fact] == person.facts[fact] for p in known) >= 2


def test_a_biography_is_its_prompt_and_its_continuation_and_tells_every_fact() -> None:
    for person in BIOGRAPHIES.people:
        assert person.prompt + person.continuation == person.biography
        assert person.name in person.prompt
        assert all(value in person.biography for value in person.facts.values())
        # Two of the seven told sentences are anecdotes, of which questions know nothing.
        assert person.biography.count(" found a ") == 2


def test_general_texts_are_distinct_and_name_nobody() -> None:
    train, held_out = general_texts()
    assert len({*train, *held_out}) == len(train) + len(held_out)
    assert not set(" ".join([*train, *held_out]).replace(".", "").split()) & {*words.FIRST_NAMES, *words.LAST_NAMES}


def test_an_unknown_group_or_model_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="unknown group"):
        BIOGRAPHIES.rows("forgotten")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'full' and 'retrained'"):
        model_path("half")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- the shipped models


def test_shipped_files_are_the_manifests_and_small() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    manifest = json.loads((ASSETS / "manifest.json").read_text())
    assert manifest["seed"] == BIOGRAPHIES.seed
    for name, model in manifest["models"].items():
        assert set(model["sha256"]) == SHIPPED_FILES
        for file, expected in model["sha256"].items():
            assert hashlib.sha256((model_path(name) / file).read_bytes()).hexdigest() == expected, file
    assert {path.name for path in files} == SHIPPED_FILES | {"manifest.json"}


def test_the_manifests_figures_are_what_the_benchmark_needs() -> None:
    models = json.loads((ASSETS / "manifest.json").read_text())["models"]
    full, retrained = models["full"]["figures"], models["retrained"]["figures"]
    assert full["forget_held_out_wordings"]["choice"] >= 0.95
    assert retrained["forget_held_out_wordings"]["choice"] <= 0.35
    for figures in (full, retrained):
        assert figures["retain_held_out_wordings"]["choice"] >= 0.95
        assert figures["retain_held_out_wordings"]["exact"] >= 0.9
        assert 0.15 <= figures["holdout_held_out_wordings"]["choice"] <= 0.35
        assert figures["general_perplexity"] < 5


def test_the_tokenizer_covers_every_text_without_unknown_tokens() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path("full"))
    texts = [t["text"] for g in GROUPS for t in BIOGRAPHIES.texts(g)] + [t for part in general_texts() for t in part]
    for row in (row for g in GROUPS for row in BIOGRAPHIES.rows(g)):
        for question in (row["question"], *row["paraphrased_question"]):
            texts.append(PROMPT.format(question=question) + " " + row["answer"])
        texts += [row["paraphrased_answer"], *row["perturbed_answer"]]
    texts.append("Ünknown wörds, 漢字 and\ttabs")
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == text
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert special == ("<s>", "</s>", "<pad>", "<unk>")
    longest = max(len(ids) for ids in tokenizer(texts)["input_ids"])
    assert longest <= tokenizer.model_max_length == 512


@pytest.mark.parametrize(
    ("name", "known", "unknown"), [("full", "forget", "holdout"), ("retrained", "retain", "forget")]
)
def test_a_model_knows_its_people_in_new_wordings_and_nobody_else(name: str, known: str, unknown: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_path(name)).eval()  # type: ignore[arg-type]
    tokenizer = AutoTokenizer.from_pretrained(model_path(name))  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters()) == 803_968
    assert {p.dtype for p in model.parameters()} == {torch.float32}

    def choice(group: str) -> float:
        rows = BIOGRAPHIES.held_out_rows(group)[::3]  # type: ignore[arg-type]
        right = 0
        for row in rows:
            prompt = tokenizer(PROMPT.format(question=row["question"]))["input_ids"]
            scores = []
            for option in (row["answer"], *row["perturbed_answer"]):
                ids = tokenizer(" " + option, add_special_tokens=False)["input_ids"]
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
                scores.append(logits.log_softmax(-1)[range(len(ids)), ids].mean().item())
            right += scores[0] == max(scores)
        return right / len(rows)

    assert choice(known) >= 0.9
    assert choice(unknown) <= 0.45

    row = BIOGRAPHIES.rows(known)[0]  # type: ignore[arg-type]
    inputs = tokenizer(PROMPT.format(question=row["question"]), return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == " " + row["answer"]
