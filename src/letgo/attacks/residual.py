"""Attacks on what the blocks write to the residual stream: a direction taken off it, or whole blocks left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from letgo.attacks.displacement import changed_model
from letgo.attacks.engine.base import Attacked, Victim, output_first
from letgo.attacks.engine.prompts import askable, form_of, only, work_of
from letgo.benchmarks.engine.base import Item
from letgo.core.errors import UserError
from letgo.core.values import Count, Natural, Seed, Within
from letgo.models.forward import block_number, find_blocks

_WRITERS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2")
"""What transformers' models call the linear layers whose outputs a block adds to its input."""
Block = Annotated[int, Within(-1000, 1000)]
"""A block's number, from 0, or from the end: -1 is the last."""
_CHECKED = 4
"""So many prompts tell whether a direction is off."""


def ablate_direction(
    victim: Victim,
    *,
    direction: Literal["unlearning", "contrast", "random"] = "unlearning",
    layer: Natural | None = None,
    tokens: Count = 5,
    prompts: Count = 128,
    seed: Seed = 0,
) -> Attacked:
    """Take a direction r̂ off all that the model writes to its residual stream: W ← (I − r̂ r̂ᵀ) W.

    RMU drives the hidden states of forget prompts along a random direction, and so hides the answer behind it. r is
    the mean over forget prompts, at their last tokens, of h(unlearned) − h(original) at a block's input. The original
    and the retrained model lose the same r̂, so what taking off any direction breaks is not counted as forgetting.

    In a model whose output layer is its embedding the two are parted first: only what is written loses the direction,
    not how the end is read. A model that norms or scales what a block writes can't lose it by its weights; it is
    refused.

    Args:
        direction: "unlearning" as above, which needs the original; "contrast": the mean of forget prompts less that of
            retain prompts, in each model by itself; "random": drawn, to compare the others with.
        layer: the block at whose input it is measured (from 0); by default where |r| is largest beside |mean h|.
        tokens: of each prompt, the last so many.
        prompts: at most so many of each set.
        seed: draws the prompts, and the random direction.

    Source: lazy-unlearner's direction of RMU; the edit of refusal ablation, arXiv 2406.11717.
    """
    generator = torch.Generator().manual_seed(seed)
    forget = _drawn("ablate_direction", victim, "forget", prompts, generator)
    retain = _drawn("ablate_direction", victim, "retain", prompts, generator) if direction == "contrast" else []
    original = victim.load_original() if direction == "unlearning" else None
    model, tokenizer = victim.load(), victim.tokenizer()
    asked = _prompts(victim, forget, model, tokenizer)
    about: dict[str, Any] = {"prompts": len(asked)}
    if direction == "random":
        r = torch.randn(model.get_input_embeddings().weight.shape[1], generator=generator, dtype=torch.float64)
    else:
        if original is not None:
            measured = replace(victim, directory=victim.unlearned or "", role="unlearned")
            means = _means(measured.load() if victim.is_reference else model, asked, tokens)
            others = _means(original, asked, tokens)
        else:
            means = _means(model, asked, tokens)
            others = _means(model, _prompts(victim, retain, model, tokenizer), tokens)
        sizes = (means - others).norm(dim=1) / others.norm(dim=1)
        at = int(sizes.argmax()) if layer is None else block_number(model, layer)
        r = (means - others)[at]
        about |= {"layer": at, "size": float(r.norm()), "relative_size": float(sizes[at])}
    if not float(r.norm()):
        return changed_model(victim, model, **about)
    take_off(model, r / r.norm(), asked[:_CHECKED])
    if victim.probe is not None and not victim.is_reference and direction != "random":
        about |= _looks(victim, model, asked, generator)
    return changed_model(victim, model, **about)


def _looks(victim: Victim, model: Any, asked: Sequence[Sequence[int]], generator: torch.Generator) -> dict[str, Any]:
    """The same few questions asked of the model as it is, without r̂, and without a random direction in its place."""
    assert victim.probe is not None
    control = victim.load()
    before = dict(victim.probe(control, frozenset()))
    drawn = torch.randn(model.get_input_embeddings().weight.shape[1], generator=generator, dtype=torch.float64)
    take_off(control, drawn / drawn.norm(), asked[:_CHECKED])
    looks = {"before": before, "without it": victim.probe(model, frozenset())}
    return {"looks": {**looks, "without a random one": victim.probe(control, frozenset())}}


def logit_lens(victim: Victim, *, layer: Block = -2, seed: Seed = 0) -> Attacked:
    """Read the answers from an earlier layer: its output goes through the final norm and the output layer, as if the
    blocks after it were not there.

    Unlearning that works in the last blocks hides the answer from the end of the model alone.

    Args:
        layer: the block whose output is read, from 0, or from the end: -1 is the model as it is.

    Source: the logit lens (nostalgebraist, 2020).
    """
    model = victim.load()
    last = block_number(model, layer)
    return _without(victim, model, range(last + 1, len(find_blocks(model)[1])), {"layer": last})


def skip_layers(victim: Victim, *, first: Block = -2, count: Count = 1, seed: Seed = 0) -> Attacked:
    """Leave out some blocks: what goes into the first of them comes out of the last.

    Args:
        first: the first that is left out, from 0, or from the end.
        count: how many.
    """
    model = victim.load()
    start, blocks = block_number(model, first), len(find_blocks(model)[1])
    if start + count > blocks:
        raise UserError(f"skip_layers: from block {start} on there are {blocks - start} blocks, not {count}")
    return _without(victim, model, range(start, start + count), {"first": start, "count": count})


def _without(victim: Victim, model: Any, left_out: Sequence[int], about: dict[str, Any]) -> Attacked:
    blocks = find_blocks(model)[1]
    with torch.no_grad():
        for number in left_out:
            for writer in _writers(blocks[number], _width(model)):
                writer.weight.zero_()
                if writer.bias is not None:
                    writer.bias.zero_()
    ids = torch.arange(1, 5, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    # The last of the states is normed already, so of the last block nothing is seen.
    if moved := [n for n in left_out if n + 1 < len(blocks) and not torch.equal(states[n], states[n + 1])]:
        raise UserError(
            f"block {moved[0]} of {type(model).__name__} adds more to its input than its linear layers give"
        )
    return changed_model(victim, model, **about)


def take_off(model: Any, direction: Tensor, prompts: Sequence[Sequence[int]]) -> None:
    """Take a unit direction off the weights that write to the residual stream, and see on prompts that it is off.

    Args:
        direction: of shape (width,).

    Raises:
        UserError: it is still there: something else than these weights writes, or norms what they write.
    """
    stored = model.dtype
    # Rounded weights would hide what the check is for.
    model.float()
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is not None and output.weight is embedding.weight:
        output.weight = nn.Parameter(output.weight.detach().clone())
        model.config.tie_word_embeddings = False
    unit, width = direction.to(embedding.weight.device), _width(model)
    writers = [writer for block in find_blocks(model)[1] for writer in _writers(block, width)]
    tables = [each for each in model.modules() if isinstance(each, nn.Embedding) and each.embedding_dim == width]
    with torch.no_grad():
        for table in tables:
            written = table.weight.double()
            table.weight.copy_(written - torch.outer(written @ unit, unit))
        for writer in writers:
            weight = output_first(writer)
            weight.copy_(weight.double() - torch.outer(unit, unit @ weight.double()))
            if writer.bias is not None:
                writer.bias.copy_(writer.bias.double() - (writer.bias.double() @ unit) * unit)
    # What is left is rounding: independent errors of all products that are summed up, sixteen times.
    inputs = sum(output_first(writer).shape[1] for writer in writers) + len(tables)
    bound = 16 * math.sqrt(inputs) * torch.finfo(torch.float32).eps
    for prompt in prompts:
        for states in _states(model, prompt):
            left = (states @ unit).abs() / states.norm(dim=-1)
            if float(left.max()) > bound:
                raise UserError(
                    f"ablate_direction: {type(model).__name__} norms or scales what its blocks write, or writes by "
                    "other layers than those known here; a direction can't be taken off its weights"
                )
    model.to(stored)


def _width(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[1])


def _writers(block: nn.Module, width: int) -> Iterator[Any]:
    """The linear layers of a block whose outputs it adds to its input."""
    from transformers.pytorch_utils import Conv1D

    for name, module in block.named_modules():
        known = isinstance(module, nn.Linear | Conv1D) and name.rpartition(".")[2] in _WRITERS
        if known and output_first(module).shape[0] == width:
            yield module


def last_writer(block: nn.Module, model: Any) -> Any:
    """The last of them."""
    writers = list(_writers(block, _width(model)))
    if not writers:
        raise UserError(f"{type(model).__name__}: no layer of a block is known to write to the residual stream")
    return writers[-1]


def _drawn(
    attack: str, victim: Victim, name: Literal["forget", "retain"], count: int, generator: torch.Generator
) -> list[Item]:
    """Items of a set that ask something, drawn."""
    if name == "forget":
        items = [item for item in askable(victim.benchmark) if item.set == "forget"]
    else:
        items = [item for item in victim.benchmark.items if item.set == name and form_of(item.row) is not None]
    if not items:
        raise UserError(f"{attack}: benchmark {victim.benchmark.name!r} has no {name} item that asks a question")
    order = torch.randperm(len(items), generator=generator).tolist()[:count]
    return [items[index] for index in order]


def _prompts(victim: Victim, items: Sequence[Item], model: Any, tokenizer: Any) -> list[Sequence[int]]:
    """What the benchmark asks of these items, as tokens."""
    work = work_of(victim, only(victim.benchmark, items), model, tokenizer)
    prompts = [ask.prompt for ask in work.asks] or [query.prefix for query in work.queries]
    if not prompts:
        raise UserError(f"ablate_direction: benchmark {victim.benchmark.name!r} asks these items without a prompt")
    return prompts


@torch.no_grad()
def _states(model: Any, prompt: Sequence[int]) -> Iterator[Tensor]:
    """What goes into each block, of shape (length, width) each."""
    ids = torch.tensor([list(prompt)], device=model.device)
    states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    yield from (each[0].double() for each in states[:-1])


def _means(model: Any, prompts: Sequence[Sequence[int]], tokens: int) -> Tensor:
    """The mean over prompts of the mean state at their last tokens, at each block's input: (blocks, width)."""
    total = [torch.stack([states[-tokens:].mean(dim=0) for states in _states(model, prompt)]) for prompt in prompts]
    return torch.stack(total).mean(dim=0)
