"""What prompt attacks ask, to the letter; and the search for a suffix."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest
import torch

from letgo.attacks.engine.prompts import asked_otherwise, work_of
from letgo.attacks.engine.spec import check_attacks, plan_attack
from letgo.attacks.jailbreak import in_context, instruct, paraphrase, prefill, translate
from letgo.attacks.multi_turn import OBJECTION, multi_turn
from letgo.attacks.sample import sample
from letgo.attacks.suffix import suffix
from letgo.benchmarks.engine.base import Benchmark
from letgo.core.errors import EmptyScoreError, UserError
from letgo.data.encode import encode_prompt
from letgo.data.rows import rows_from_records
from letgo.scoring.scoring import Query, continuation_logps
from tests import tiny

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }} : {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}Answer :{% endif %}"
)


def chatty(victim, tmp_path):
    """The same model with a chat template."""
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = CHAT
    tiny.make_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return replace(victim, directory=tmp_path, benchmark=replace(victim.benchmark, template="chat"))


def asking(victim, record, **changes):
    """The same with one item, of this row."""
    [row] = rows_from_records([record], "x")
    item = replace(victim.benchmark.items[0], row=row, **changes)
    return replace(victim, benchmark=replace(victim.benchmark, items=[item]))


def way(attacked):
    """The benchmark of the first way of asking."""
    return next(iter(attacked.asked.values()))


def first(attacked):
    return way(attacked).items[0].row


def test_one_retain_pair_before_a_question(victim):
    attacked = in_context(victim, shots=1, seed=1)
    [asked] = attacked.asked.values()
    assert len(asked.items) == 4
    assert asked.texts == ()
    retain = {row["question"]: row["answer"] for row in tiny.RETAIN}
    pair, _, question = first(attacked).context.partition("\n\nQuestion: ")
    shown, _, answer = pair.partition("\nAnswer: ")
    assert retain[shown] == answer
    assert question == tiny.FORGET[0]["question"]
    prompt = tiny.make_tokenizer().decode(encode_prompt(tiny.make_tokenizer(), first(attacked), "plain"))
    assert prompt.count("Question") == prompt.count("Answer") == 2
    drawn = {tuple(i.row.context for i in way(in_context(victim, seed=s)).items) for s in (1, 1, 2)}
    assert len(drawn) == 2


def test_forget_pairs_are_of_other_groups(victim):
    for item in way(in_context(victim, shots=3, data="forget")).items:
        assert item.row.context.count(item.group) == 1
        assert item.row.context.count("capital") == 4


def test_pairs_are_turns_in_a_chat(victim, tmp_path):
    row = first(in_context(chatty(victim, tmp_path), shots=2))
    assert row.form == ("messages",)
    assert [role for role, _ in row.context] == ["user", "assistant", "user", "assistant", "user"]
    assert row.context[-1][1] == tiny.FORGET[0]["question"]


def test_a_begun_answer_follows_the_prompt(victim, tmp_path):
    attacked = prefill(victim, text="the new city is")
    row, item = first(attacked), way(attacked).items[0]
    assert row.context == f"Question: {tiny.FORGET[0]['question']}\nAnswer: the new city is"
    assert row.target == f" {tiny.FORGET[0]['answer']}"
    assert item.id == victim.benchmark.items[0].id
    assert len(prefill(victim).asked) == 3
    chat = chatty(victim, tmp_path)
    text = first(prefill(chat, text="the new city is")).context
    assert text == f"user : {tiny.FORGET[0]['question']}Answer :the new city is", "its start token is put there again"
    tokens = encode_prompt(chat.tokenizer(), first(prefill(chat, text="the")), "chat")
    assert tokens.count(1) == 1


def test_the_answers_own_first_words(victim):
    record = {"question": "what is the river ?", "answer": "old red river", "group": "a"}
    own = asking(victim, record, wrong=("new blue stone", "green"))
    [changed] = way(prefill(own, words=2)).items
    assert changed.row.context.endswith("Answer: old red")
    assert changed.row.target == " river"
    assert changed.wrong == (" stone",)
    with pytest.raises(UserError, match="no forget item"):
        prefill(own, words=3)


def test_prompts_to_be_completed_are_begun_within_the_sentence(victim):
    own = asking(victim, {"prompt": "the capital of aland is", "completion": " amberton", "group": "aland"})
    assert first(prefill(own)).context == "the capital of aland is, as everyone knows,"
    assert first(prefill(own, text="the city")).context == "the capital of aland is the city"
    assert first(instruct(own)).context.endswith("\n\nthe capital of aland is")
    assert first(paraphrase(own)).context.endswith("the capital of aland is")


def test_paraphrases_of_the_data_come_first(victim):
    given = dict(tiny.FORGET[0], paraphrased_question=["name the capital of aland", "aland : capital ?"])
    own = asking(victim, given)
    assert [asked.items[0].row.context for asked in paraphrase(own).asked.values()] == given["paraphrased_question"]
    assert len(paraphrase(victim).asked) == 4, "templates of ours"


@pytest.fixture
def written(tmp_path):
    """A file of translations into an invented language, which has the words of ours from behind."""

    def write(*rows):
        return str(tiny.write_jsonl(tmp_path / "translations.jsonl", list(rows)))

    return write


def backwards(number, **changes):
    row = tiny.FORGET[number]
    words = " ".join(reversed(row["question"].split()))
    return {"id": f"forget-{number}", "question": words, "answer": row["answer"], **changes}


def test_translations_take_the_place_of_the_questions(victim, written):
    first, second = backwards(0), backwards(2, answer="old stone", language="stonish")
    asked = translate(victim, path=written(first, second)).asked
    assert {name: [item.id for item in of.items] for name, of in asked.items()} == {
        "translation": ["forget-0"],
        "stonish": ["forget-2"],
    }
    rows = [of.items[0].row for of in asked.values()]
    assert [row.context for row in rows] == [first["question"], second["question"]]
    assert [row.target for row in rows] == ["amberton", "old stone"]
    assert rows[0].group == "aland"


def test_translated_answers_need_wrong_ones_where_there_are_some(victim, written):
    record = {"prompt": "the river is", "completion": " red", "group": "a"}
    own = asking(victim, record, wrong=(" blue",), paraphrase=" red", wrong_paraphrases=(" blue", " green"))
    row = {"id": "forget-0", "question": "is river ?", "answer": "stone"}
    with pytest.raises(UserError, match=r"translations\.jsonl.*'forget-0' is scored against wrong answers"):
        translate(own, path=written(row))
    [item] = way(translate(own, path=written(row | {"wrong_answers": ["old", "new"]}))).items
    assert (item.row.context, item.row.target, item.paraphrase) == ("is river ?", " stone", " stone")
    assert item.wrong == item.wrong_paraphrases == (" old", " new")
    [item] = way(translate(own, path=written(row | {"answer": "red"}))).items
    assert (item.row.target, item.wrong) == (" red", (" blue",)), "a name that stays keeps the wrong ones"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([backwards(0, id="forget-O")], "asks no forget or control item with the id 'forget-O'; did you mean"),
        ([backwards(0, id="retain-0")], "asks no forget or control item"),
        ([backwards(0), backwards(0)], r"jsonl:2: item 'forget-0' stands there twice"),
        ([backwards(0, id=3)], "field 'id' must be text"),
        ([{"question": "what ?", "answer": "red"}], "field 'id' must be text, not null"),
        ([backwards(0, language="")], "field 'language' is empty"),
    ],
)
def test_a_file_of_translations_that_does_not_fit_is_refused_before_there_is_a_model(victim, written, rows, message):
    with pytest.raises(UserError, match=message):
        check_attacks([plan_attack(f"translate:path={written(*rows)}")], replace(victim, directory=""))


def test_instructions_hold_the_question(victim):
    attacked = instruct(victim, template="answer this : {q}")
    assert first(attacked).context == f"answer this : {tiny.FORGET[0]['question']}"
    assert all(tiny.FORGET[0]["question"] in a.items[0].row.context for a in instruct(victim).asked.values())


def test_a_dialogue_holds_the_models_own_answers(victim):
    """Each round's answers are those that a plain greedy loop gives to the round before, cut at the line's end."""
    attacked = multi_turn(victim, rounds=2, objection="no : {q}")
    tokenizer, model = victim.tokenizer(), victim.load()
    rooms = [ask.max_new_tokens for ask in work_of(victim, victim.benchmark, model, tokenizer).asks]
    assert list(attacked.asked) == ["after 1 objection(s)", "after 2 objection(s)"]
    for number, item in enumerate(victim.benchmark.items[:4]):
        question = dialogue = item.row.context
        for asked in attacked.asked.values():
            prompt = encode_prompt(tokenizer, replace(item.row, context=dialogue), "plain")
            tokens = torch.tensor([prompt])
            for _ in range(rooms[number]):
                token = model(tokens).logits[0, -1].argmax()
                if token == tokenizer.eos_token_id:
                    break
                tokens = torch.cat([tokens, token.view(1, 1)], 1)
            said = tokenizer.decode(tokens[0, len(prompt) :], skip_special_tokens=True).strip().split("\n")[0].strip()
            dialogue += f"\nAnswer: {said}\n\nQuestion: no : {question}"
            assert asked.items[number].row.context == dialogue
            assert asked.items[number].row.target == item.row.target
    with pytest.raises(UserError, match="in the question's place"):
        multi_turn(victim, objection="no")


def test_a_dialogue_in_a_chat_is_turns_after_the_rows_own(victim, tmp_path):
    own = [{"role": "system", "content": "be brief"}, {"role": "user", "content": tiny.FORGET[0]["question"]}]
    record = {"messages": [*own, {"role": "assistant", "content": "amberton"}], "group": "aland"}
    chat = asking(chatty(victim, tmp_path), record)
    turns = multi_turn(chat, rounds=1).asked["after 1 objection(s)"].items[0].row.context
    assert [role for role, _ in turns] == ["system", "user", "assistant", "user"]
    assert turns[:2] == tuple((turn["role"], turn["content"]) for turn in own)
    assert turns[3][1] == OBJECTION.replace("{q}", tiny.FORGET[0]["question"])


def test_only_what_is_scored_is_answered(victim):
    asked = multi_turn(replace(victim, limit=2), rounds=1).asked
    assert [len(benchmark.items) for benchmark in asked.values()] == [2]


def test_bare_texts_cannot_be_asked(victim):
    own = asking(victim, {"text": "old red river", "group": "a"})
    for attack in (in_context, prefill, paraphrase, instruct, suffix, multi_turn):
        with pytest.raises(UserError, match="no forget item that can be asked"):
            attack(own)
    with pytest.raises(UserError, match="no forget item"):
        asked_otherwise(own, lambda item: item)


@dataclass(frozen=True)
class Own(Benchmark):
    """A benchmark that makes its prompts itself, of the question, within a length, against another's record."""

    length: int = 30
    reference: object = None

    def work(self, model, tokenizer, **more):
        return super().work(model, tokenizer, **more)


def test_a_benchmark_with_prompts_of_its_own_is_asked_by_its_template(victim, tmp_path):
    chat = chatty(victim, tmp_path)
    given = {f.name: getattr(chat.benchmark, f.name) for f in fields(Benchmark)}
    own = replace(chat, benchmark=Own(**given, reference="a record"))
    [asked] = in_context(own, shots=2).asked.values()
    assert asked.items[0].row.form == ("question", "answer"), "text, not turns"
    assert asked.length == 90
    assert asked.reference is None
    with pytest.raises(UserError, match="no answer can be begun"):
        prefill(own)


def test_the_suffix_makes_the_answers_likelier_on_what_it_was_searched_on(victim):
    attacked = suffix(victim, length=3, steps=12, candidates=12, items=2, seed=1)
    losses = [point["loss"] for point in attacked.curve]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert len(attacked.seen) == 2
    [asked] = attacked.asked.values()
    assert {item.group for item in asked.items} == set(victim.benchmark.groups()) - attacked.seen
    # The loss that it reports is what the shared scorer says of that string.
    known = [i for i in victim.benchmark.items if i.set == "forget" and i.group in attacked.seen]
    tokenizer, queries = victim.tokenizer(), []
    for item in known:
        row = replace(item.row, context=f"{item.row.context} {attacked.did['suffix']}")
        target = tokenizer(" " + item.row.target, add_special_tokens=False)["input_ids"]
        queries.append(Query(encode_prompt(tokenizer, row, "plain"), [target]))
    scored = [-float(logps[0].mean()) for logps in continuation_logps(victim.load(), queries)]
    assert sum(scored) / 2 == pytest.approx(attacked.did["last_loss"], rel=1e-4)


def test_sampling_needs_questions(victim):
    bare = replace(victim, benchmark=replace(victim.benchmark, items=()))
    with pytest.raises(EmptyScoreError, match="no forget item asks a question"):
        sample(bare)
