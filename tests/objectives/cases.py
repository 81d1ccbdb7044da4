"""What the tests of objectives share: four architectures, and batches with everything that an objective needs."""

from __future__ import annotations

import copy
from typing import Any

import torch

from letgo.data import ForgetRetainDataset, collate_pairs, encode_rows, pad_rows, read_rows
from letgo.objectives import create_objective
from letgo.objectives.references import reference_quantities
from letgo.objectives.refusals import alternative_answers
from tests import tiny

ARCHITECTURES = ("llama", "gpt2", "qwen2", "gemma2")
FORGET = [row | {"alternative": f"old {row['answer']}"} for row in tiny.FORGET[:3]] + [
    {"prompt": "new river", "completion": "stone red blue", "alternative": "green"}
]
RETAIN = [*tiny.RETAIN[:3], {"text": "old river stone red green"}, {"prompt": "the", "completion": "capital of"}]


def make(architecture: str, *, layers: int = 3, width: int = 16, seed: int = 0, **changes: Any) -> Any:
    """A random model of few thousand parameters, float32, with initial weights large enough to matter."""
    import transformers

    common = {"vocab_size": 48, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.15}
    if architecture == "gpt2":
        own = {"n_embd": width, "n_layer": layers, "n_head": 2, "n_positions": 64, "n_inner": 2 * width}
        # Dropout is GPT-2's default: two evaluations of one function must not differ.
        own |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        own = {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
        }
    if architecture == "gemma2":
        own |= {"head_dim": width // 2, "query_pre_attn_scalar": width // 2, "sliding_window": 32}
        own |= {"final_logit_softcapping": 2.0}
    if architecture == "llama":
        own |= {"tie_word_embeddings": False}
    name = {"llama": "Llama", "gpt2": "GPT2", "qwen2": "Qwen2", "gemma2": "Gemma2"}[architecture]
    config = getattr(transformers, f"{name}Config")(**(common | own | changes))
    kind = getattr(transformers, "GPT2LMHeadModel" if architecture == "gpt2" else f"{name}ForCausalLM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config).eval()


def dataset_for(objective: Any, tokenizer: Any) -> ForgetRetainDataset:
    """The forget and retain rows, with alternatives where the objective has a use for them."""
    forget, retain = (encode_rows(tokenizer, read_rows(rows), max_length=64)[0] for rows in (FORGET, RETAIN))
    alternative = []
    if objective.alternative:
        answers = alternative_answers("own", [row.row for row in forget])
        alternative = tiny.encode_alternatives(tokenizer, forget, answers, max_length=64)
    return ForgetRetainDataset(forget, retain, alternative=alternative)


def prepared(name: str, model: Any, tokenizer: Any, *, moved: float = 0.0, **settings: Any) -> tuple[Any, Any, Any]:
    """An objective, a batch of all forget rows with what it needs of the reference, and the reference model.

    The model is the reference; with `moved` its weights have since gone elsewhere.
    """
    objective = create_objective(name, **settings)
    dataset = dataset_for(objective, tokenizer)
    objective.prepare(model)
    for part, names in objective.reference.items():
        whole = pad_rows(getattr(dataset, part), 0)
        dataset.reference[part] = reference_quantities(model, whole, names, layer=objective.layer)
    objective.fit(model, dataset.reference)
    original = copy.deepcopy(model)
    if moved:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(moved * noise.to(parameter.dtype))
    batch = collate_pairs(0)([dataset[index] for index in range(len(dataset))])
    return objective, objective.attacked(model, {part: batch[part] for part in objective.parts}), original


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    """All gradients of a loss in one vector."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


def rows_of(part: dict[str, torch.Tensor], cut: slice) -> dict[str, torch.Tensor]:
    """Some rows of a part, with their share of what is packed."""
    labels = (part["labels"][:, 1:] != -100).sum(dim=1).tolist()
    real = part["attention_mask"].sum(dim=1).tolist()
    packed = {"reference_hidden": labels, "reference_layer_hidden": real, "latent": real}
    return {
        key: torch.cat(value.split(packed[key])[cut]) if key in packed else value[cut] for key, value in part.items()
    }
