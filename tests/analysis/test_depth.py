from __future__ import annotations

import shutil

import pytest
import torch

from letgo.analysis.depth import depth, lost_by_layer, patched, score, states_of
from letgo.analysis.records import read_analyses
from letgo.core.errors import EmptyScoreError, NonFiniteLossError, UserError
from letgo.data import encode_rows, pad_rows, read_rows
from letgo.models.load import load_model
from letgo.report.analyses import in_text
from letgo.runs.results import read_result, write_result
from tests import tiny
from tests.objectives.cases import ARCHITECTURES, make
from tests.reference.objectives import row_tokens


def part_of(tokenizer):
    rows = [*tiny.FORGET[:2], {"text": "old river stone red green"}]
    return pad_rows(encode_rows(tokenizer, read_rows(rows), max_length=64)[0], 0)


def test_a_score_by_hand():
    assert score([0.5, 0.2, 0.04], [0.25, 0.3, 9.0], 0.05) == pytest.approx((0.25 + 0.2) / 0.7)
    assert score([0.5, 0.2], [-1.0, 0.0], 0.05) == 0.0
    assert score([0.05, -1.0], [1.0, 1.0], 0.05) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_equal_a_plain_loop_over_rows(tokenizer, architecture):
    """Row by row without padding: the original's blocks one after the other, one of them overwritten by a hook."""
    original, source = make(architecture).double(), make(architecture, seed=1).double()
    part = part_of(tokenizer)
    found = lost_by_layer(original, source, part)
    blocks = [next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList)) for model in (original, source)]
    for row, values in enumerate(found):
        length = int(part["attention_mask"][row].sum())
        at = [t - 1 for t in range(1, length) if int(part["labels"][row, t]) != -100]
        whole = float((sum(row_tokens(original, part, row)) / len(at)).detach())
        for number, value in enumerate(values):
            kept = []
            hook = blocks[1][number].register_forward_hook(
                lambda m, a, out, kept=kept: kept.append(out if isinstance(out, torch.Tensor) else out[0])
            )
            source(input_ids=part["input_ids"][row : row + 1, :length])
            hook.remove()

            def put(m, a, out, kept=kept, at=at):
                hidden = (out if isinstance(out, torch.Tensor) else out[0]).clone()
                for t in at:
                    hidden[0, t] = kept[0][0, t]
                return hidden if isinstance(out, torch.Tensor) else (hidden, *out[1:])

            hook = blocks[0][number].register_forward_hook(put)
            patched_mean = float((sum(row_tokens(original, part, row)) / len(at)).detach())
            hook.remove()
            assert value == pytest.approx(whole - patched_mean, rel=1e-4, abs=1e-5)
    # After the last block nothing of the original is left but its output layer.
    assert any(abs(value) > 1e-3 for values in found for value in values)


def test_a_models_own_states_change_nothing(tokenizer):
    model, part = make("llama"), part_of(tokenizer)
    assert all(abs(value) < 1e-6 for row in lost_by_layer(model, model, part) for value in row)
    with torch.no_grad():
        [first, *_] = states_of(model, part)
        with patched(model, 0, part, 0 * first), pytest.raises(RuntimeError, match="out of memory"):
            raise RuntimeError("out of memory")
    assert not any(block._forward_hooks for block in model.model.layers)


def test_the_ends_of_the_score(run, original, other, tmp_path):
    entry = depth(run, retrained=str(run), threshold=0.0)
    assert entry.score.value == 1.0, "the unlearned model is the retrained one"
    assert entry.score.n + entry.left_out == entry.rows["forget_loss"] == len(tiny.FORGET)
    assert [layer.layer for layer in entry.layers] == [0, 1]
    assert all(layer.retrained == layer.unlearned for layer in entry.layers)
    between = depth(run, retrained=str(other), threshold=0.0)
    assert 0.0 <= between.score.value <= 1.0
    assert between.broken == []
    same = tmp_path / "same"
    shutil.copytree(run, same)
    load_model(original).save_pretrained(same)
    assert depth(same, retrained=str(other), threshold=0.0).score.value < 1e-3, "nothing was unlearned"
    assert read_analyses(run, ["depth"]) == [entry, between]
    assert "Unlearning depth: run" in "\n".join(in_text(between))


def test_a_broken_model_is_flagged(run, other):
    write_result(run, read_result(run).model_copy(update={"status": "collapsed", "reasons": ["it writes nothing"]}))
    entry = depth(run, retrained=str(other), threshold=0.0)
    assert entry.broken == ["it writes nothing"]
    assert "is broken, so the score says nothing of forgetting: it writes nothing" in "\n".join(in_text(entry))


def test_what_can_not_be_measured(run, original, other, tmp_path, tokenizer):
    with pytest.raises(UserError, match="needs the retrained model"):
        depth(run)
    with pytest.raises(UserError, match="threshold must be at least 0"):
        depth(run, retrained=str(other), threshold=float("nan"))
    with pytest.raises(EmptyScoreError, match=r"no layer of the retrained model takes more than 0\.05"):
        depth(run, retrained=str(original))
    wider = tmp_path / "wider"
    tiny.make_model(hidden_size=16).save_pretrained(wider)
    tiny.make_tokenizer().save_pretrained(wider)
    with pytest.raises(UserError, match="not of one architecture"):
        depth(run, retrained=str(wider))
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="not finite"):
        lost_by_layer(model, make("llama"), part_of(tokenizer))
