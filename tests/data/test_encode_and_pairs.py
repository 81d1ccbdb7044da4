from __future__ import annotations

import pytest
import torch

from letgo.core.errors import UserError
from letgo.data import ForgetRetainDataset, collate_pairs, encode_rows, pad_rows, read_rows, resolve_template
from letgo.data.encode import IGNORE
from tests.tiny import FORGET, RETAIN, make_tokenizer


def encode(tokenizer, rows, **more):
    return encode_rows(tokenizer, read_rows(rows), **({"max_length": 64} | more))


def test_labels_cover_the_answer_and_its_end_alone(tokenizer):
    [row], said = encode(tokenizer, FORGET[:1])
    assert said == []
    words = tokenizer.convert_ids_to_tokens([i for i in row.labels if i != IGNORE])
    assert words == [FORGET[0]["answer"], "</s>"]
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert len(row.labels) == len(row.input_ids)
    assert all(a in (IGNORE, b) for a, b in zip(row.labels, row.input_ids, strict=True))


def test_no_start_token_where_the_tokenizer_puts_none():
    plain = make_tokenizer(bos=False)
    [row], _ = encode(plain, FORGET[:1])
    assert row.input_ids[0] != plain.bos_token_id


def test_a_text_is_all_label(tokenizer):
    [row], _ = encode(tokenizer, [{"text": "old river stone"}])
    assert row.labels == [IGNORE, *row.input_ids[1:]]


def test_an_end_token_where_the_target_ends(tokenizer):
    rows = [FORGET[0], FORGET[0] | {"end": False}, {"text": "red"}, {"text": "red", "end": True}]
    ended = [row.input_ids[-1] == tokenizer.eos_token_id for row in encode(tokenizer, rows)[0]]
    assert ended == [True, False, False, True]
    with pytest.raises(UserError, match="'end' must be true or false"):
        encode(tokenizer, [FORGET[0] | {"end": "no"}])


def test_chat_template_is_used_where_there_is_one():
    tokenizer = make_tokenizer()
    assert resolve_template(tokenizer, "auto") == "plain"
    with pytest.raises(UserError, match="no chat template"):
        resolve_template(tokenizer, "chat")
    messages = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "red"}]
    with pytest.raises(UserError, match="need a tokenizer with a chat template"):
        encode(tokenizer, [{"messages": messages}])
    tokenizer.chat_template = (
        "{% for m in messages %}red {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}blue{% endif %}"
    )
    assert resolve_template(tokenizer, "auto") == "chat"
    [row], _ = encode(tokenizer, FORGET[:1])
    words = tokenizer.convert_ids_to_tokens(row.input_ids)
    assert words[0] == "red"
    assert words[-3:] == ["blue", FORGET[0]["answer"], "</s>"]


def test_long_rows_are_counted_and_said(tokenizer):
    rows = [*FORGET, {"question": "what " * 30, "answer": "red"}]
    with pytest.raises(UserError, match=r"1 of 5 rows are longer than max_length 20 tokens \(longest 37.*row 5"):
        encode(tokenizer, rows, max_length=20)
    kept, said = encode(tokenizer, rows, max_length=20, long_rows="drop")
    assert len(kept) == 4
    assert "dropped" in said[0]
    texts = [{"text": "red " * 30}]
    [cut], said = encode(tokenizer, texts, max_length=20, long_rows="cut")
    assert len(cut) == 20
    assert "cut" in said[0]
    with pytest.raises(UserError, match="no target left"):
        encode(tokenizer, rows, max_length=20, long_rows="cut")
    with pytest.raises(UserError, match="nothing is left"):
        encode(tokenizer, texts, max_length=20, long_rows="drop")


def test_padding(tokenizer):
    rows, _ = encode(tokenizer, [{"text": "red"}, {"text": "red blue green"}])
    batch = pad_rows(rows, 0)
    assert batch["input_ids"].shape == (2, 4)
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert (batch["labels"][0, 2:] == IGNORE).all()


def pairs(tokenizer, retain=RETAIN, seed=0):
    return ForgetRetainDataset(encode(tokenizer, FORGET)[0], encode(tokenizer, retain)[0], seed=seed)


def test_each_lap_sees_every_retain_row_once_and_depends_on_seed_and_epoch_alone(tokenizer):
    retain = [{"text": word} for word in ("red", "blue", "green", "old", "new", "river", "stone")]
    data = pairs(tokenizer, retain)
    seen = []
    for epoch in range(7):
        data.set_epoch(epoch)
        seen += [data.retain_index(i) for i in range(len(data))]
    for lap in range(4):
        assert sorted(seen[lap * 7 : lap * 7 + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]
    again = pairs(tokenizer, retain)
    again.set_epoch(5)
    assert [again.retain_index(i) for i in range(4)] == seen[20:24]
    other = pairs(tokenizer, retain, seed=1)
    assert [other.retain_index(i) for i in range(4)] != seen[:4]


def test_without_a_forget_set_an_epoch_is_all_retain_rows_once(tokenizer):
    retain = encode(tokenizer, RETAIN)[0]
    dataset = ForgetRetainDataset([], retain, seed=3)
    assert len(dataset) == len(retain)
    orders = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        items = [dataset[index] for index in range(len(dataset))]
        assert all("forget" not in item for item in items)
        orders.append([item["index"]["retain"] for item in items])
    assert [sorted(order) for order in orders] == [list(range(len(retain)))] * 2
    batch = collate_pairs(tokenizer.pad_token_id)(items)
    assert set(batch) == {"retain"}


def test_collation_carries_reference_logps(tokenizer):
    data = pairs(tokenizer)
    data.reference["forget"] = {"logps": list(torch.arange(4.0))}
    batch = collate_pairs(0)([data[2], data[0]])
    assert batch["forget"]["reference_logps"].tolist() == [2.0, 0.0]
    assert batch["retain"]["input_ids"].shape[0] == 2
    assert "retain" not in collate_pairs(0)([pairs(tokenizer).__class__(data.forget, [])[0]])
