"""Adapters: LoRA on a model as it is, or on a quantized one (QLoRA); saved beside the name of their base, and read
back as one plain model with the adapter merged into its weights.

An adapter directory holds peft's own two files and `base.json`, which says what peft's do not: the base as the user
named it, how it was quantized, and a fingerprint of it, so that an adapter is never merged into another model.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from letgo.core.errors import UserError
from letgo.core.extras import need
from letgo.core.fingerprints import Fingerprint
from letgo.core.values import compiled
from letgo.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, loading, tensors_of

BASE_FILE = "base.json"
MERGED = "merged"
"""The folder of a LoRA run that holds the whole model, where `save_merged` asks for it."""
QUANTIZATIONS = ("nf4", "fp4", "int8")
_BASE = "a LoRA adapter's base"


@dataclass(frozen=True)
class Base:
    """What an adapter was trained on: the model's name, its weights' type, its quantization, a fingerprint of it."""

    model: str
    dtype: str
    quantization: str | None
    fingerprint: str


def is_adapter(directory: str | Path) -> bool:
    return (Path(directory) / ADAPTER_CONFIG).is_file()


def has_adapters(model: Any) -> bool:
    """Whether a model carries peft's adapters."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def linear_targets(model: torch.nn.Module, pattern: str | None = None, trainable: str | None = None) -> list[str]:
    """Names of the linear layers that get adapters: all but the output layer, or those in whose names `pattern` is
    found; with `trainable`, of those the ones in whose weight's name that is found.

    Raises:
        UserError: a pattern is no regular expression, or nothing is left.
    """
    from transformers.pytorch_utils import Conv1D

    find_output: Any = getattr(model, "get_output_embeddings", None)
    output = find_output() if find_output is not None else None
    # bitsandbytes' quantized layers are linear layers too.
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    ]
    if not linear:
        raise UserError("lora_rank: the model has no linear layer to put an adapter on")
    targets = linear
    for field, wanted, suffix in (("lora_targets", pattern, ""), ("trainable", trainable, ".weight")):
        if wanted is None:
            continue
        pattern_in = compiled(field, wanted)
        targets = [name for name in targets if pattern_in.search(name + suffix)]
        if not targets:
            raise UserError(
                f"{field}: {wanted!r} is found in the name of no linear layer that can have an adapter\n"
                f"  names are such as {', '.join(name + suffix for name in linear[:3])} … {linear[-1] + suffix}"
            )
    return targets


def add_lora(
    model: Any, *, rank: int, alpha: float | None = None, dropout: float = 0.0, targets: list[str], seed: int = 0
) -> Any:
    """Put a LoRA adapter on a model: W x + (α/r) B A x, A and B trained, everything else frozen.

    B starts at 0, so the model is at first what it was. A is drawn as peft draws it (Kaiming-uniform, a = √5), but
    from a generator of its own. The adapter of a half-precision model is in float32, where small steps count.

    Args:
        model: a causal LM of transformers, quantized or not.
        rank: r.
        alpha: α; 2 r by default.
        dropout: of the adapter's input, while training.
        targets: full names of linear layers, as `linear_targets` gives them.
        seed: of A.

    Source: LoRA, arXiv 2106.09685; on a quantized base QLoRA, arXiv 2305.14314.
    """
    peft = need("peft", "lora", what="lora_rank")
    from transformers.pytorch_utils import Conv1D

    kinds = dict(model.named_modules())
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        fan_in_fan_out=any(isinstance(kinds[name], Conv1D) for name in targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                drawn = torch.empty(parameter.shape)
                torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
                parameter.copy_(drawn)
    return adapted


def check_base(model: Any, base: Base, dtype: str, where: str | Path) -> None:
    """Refuse to merge an adapter into another model than it was trained on, by its fingerprint if the types agree."""
    fingerprint = quick_fingerprint(model)
    if base.dtype == dtype and fingerprint != base.fingerprint:
        raise UserError(
            f"{where}: the adapter was trained on another model than {base.model!r} now is "
            f"(fingerprint {base.fingerprint[:12]}…, found {fingerprint[:12]}…)\n"
            f"  put the original back, or name it in {BASE_FILE}"
        )


def quick_fingerprint(model: torch.nn.Module, most: int = 1024) -> str:
    """A hash of the parameters' names and shapes and of up to `most` evenly spread values of each: fast, and other
    for another model; not a proof of equality, as `weights_fingerprint` is."""
    digest = Fingerprint()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        few = flat[:: max(1, flat.numel() // most)][:most].cpu().contiguous()
        digest.add(f"{name} {tuple(parameter.shape)}\n")
        digest.add(few.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_base(directory: Path, base: Base) -> None:
    text = json.dumps(asdict(base), ensure_ascii=False, indent=2) + "\n"
    (directory / BASE_FILE).write_text(text, encoding="utf-8")


def read_base(directory: str | Path) -> Base:
    """The base of an adapter directory; of one that letgo did not write, what peft's own file says.

    Raises:
        UserError: neither file names a base, or one can't be read.
    """
    directory = Path(directory)
    ours, theirs = directory / BASE_FILE, directory / ADAPTER_CONFIG
    path = ours if ours.is_file() else theirs
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: can't be read ({error})") from error
    name = known.get("model" if path == ours else "base_model_name_or_path")
    if not name:
        raise UserError(f"{path}: does not name the adapter's base model; add {BASE_FILE} with its name under 'model'")
    if path == theirs:
        return Base(str(name), "", None, "")
    return Base(str(name), str(known.get("dtype", "")), known.get("quantization"), str(known.get("fingerprint", "")))


def merge_adapter(model: Any, directory: str | Path) -> Any:
    """Read the adapter of a directory onto its base and merge it: W + (α/r) B A; returns a plain model.

    Raises:
        UserError: peft is missing, or the adapter does not fit the model.
    """
    peft = need("peft", "lora", what=f"{directory} (a LoRA adapter)")
    with loading(str(directory), "the adapter"):
        adapted = peft.PeftModel.from_pretrained(model, str(directory))
        if (path := Path(directory) / ADAPTER_WEIGHTS).is_file():
            # peft leaves what it does not find as it begins: as if nothing had been trained there.
            stored, asked = set(tensors_of(path)), set(adapter_state(adapted))
            if wrong := sorted(asked - stored) or sorted(key for key in stored - asked if ".lora_" in key):
                raise UserError(
                    f"{path}: its {len(stored)} tensors are not those that {ADAPTER_CONFIG} asks for; {wrong[0]} is "
                    f"{'missing' if wrong[0] in asked else 'not among them'}\n  the download may be incomplete"
                )
        merged = adapted.merge_and_unload(safe_merge=True)
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged


def save_adapter(model: Any, directory: Path, base: Base) -> None:
    """Write the adapter alone, and what it was trained on."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base.model
    model.save_pretrained(directory, save_embedding_layers=False)
    # peft writes a card of its own, with nothing in it; the run's card takes that name.
    (directory / "README.md").unlink(missing_ok=True)
    write_base(directory, base)


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors under the names that they have in its file."""
    peft = need("peft", "lora")
    state: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def quantization_config(kind: str, dtype: torch.dtype) -> Any:
    """The settings with which transformers loads a model's linear layers in 4 or 8 bits.

    Raises:
        UserError: for an unknown kind, or without bitsandbytes.
    """
    if kind not in QUANTIZATIONS:
        raise UserError(f"base_quantization is {kind!r}; known: {', '.join(QUANTIZATIONS)}")
    need("bitsandbytes", "bitsandbytes", what=f"base_quantization: {kind}")
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=dtype)


def steady(model: Any) -> Any:
    """Keep bitsandbytes' layers what they were quantized to, whatever they are used for.

    Its 4-bit layer repacks its weights at the first evaluation on a CPU with AVX512-BF16, and what is dequantized or
    differentiated afterwards is wrong; its 8-bit layer rounds activations too, on some devices only when it is not
    training, which is another model than the one that is trained and merged. Both are switched off layer by layer.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if type(module).__name__ == "Linear8bitLt":
            module.forward = _eight_bits(module)
    return model


def _eight_bits(module: Any) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = _EightBits.apply(x, module.weight.data, module.weight.SCB)
        return result if module.bias is None else result + module.bias.to(result.dtype)

    return forward


class _EightBits(torch.autograd.Function):
    """x Wᵀ with W = s/127 · codes, s one scale a row; W itself is made anew for the backward pass, not kept.

    Args:
        x: (..., columns).
        codes: int8, (rows, columns).
        scales: (rows,).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return x @ _weight(codes, scales, x.dtype).t()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        codes, scales = ctx.saved_tensors
        return gradient @ _weight(codes, scales, gradient.dtype), None, None


def _weight(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (codes.float() * (scales.float() / 127)[:, None]).to(dtype)
