"""Quantization through the libraries that people deploy with: bitsandbytes, torchao, auto-round; and from outside."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.attacks.displacement import Rounded, apply_quantizer, weight_change
from letgo.attacks.engine.base import Attacked, Victim, linear_layers, output_first
from letgo.attacks.quantize import Bits, GroupSize
from letgo.core.errors import UserError
from letgo.core.extras import need
from letgo.core.fingerprints import file_digest
from letgo.core.values import Count, Natural, Seed
from letgo.models.files import weight_files
from letgo.models.gguf import is_gguf
from letgo.models.load import context_length
from letgo.optim.engine.rounding import Codebook, EvenLevels

_BLOCK = 64
"""bitsandbytes' default block of weights that share an absmax."""


def quantize_bnb(
    victim: Victim,
    *,
    format: Literal["nf4", "fp4", "int8"] = "nf4",
    double: bool = False,
    packed: bool = False,
    seed: Seed = 0,
) -> Attacked:
    """bitsandbytes: NF4 and FP4 (4 bits, an absmax per 64 weights) or int8 (an absmax per output channel).

    The library quantizes the weights, and they are dequantized at once, before any evaluation: on a CPU with
    AVX512-BF16 its 4-bit layers repack their weights in place at the first evaluation, and what they then give is
    silently wrong; it can't touch weights in plain layers. With `packed` the library's own layers are evaluated
    instead (int8 then rounds activations too), with that repacking off.

    Args:
        format: the data type.
        double: quantize the absmax values too (QLoRA's double quantization); 4-bit formats only.
        packed: evaluate the library's own layers and kernels.

    Source: LLM.int8(), arXiv 2208.07339; NF4, arXiv 2305.14314.
    """
    if double and format == "int8":
        raise UserError("quantize_bnb: double quantization is of the 4-bit formats; int8 has none")
    if packed:
        victim.check_last("quantize_bnb: packed weights can't be changed further")
    bnb = need("bitsandbytes", "bitsandbytes", what="attack 'quantize_bnb'")

    def quantizer(name: str, weight: Tensor) -> Rounded:
        plain = weight.float().contiguous()
        if format == "int8":
            whole, absmax, _ = bnb.functional.int8_vectorwise_quant(plain.half())
            scale = absmax.float()[:, None] / 127
            grid = EvenLevels(scale, torch.zeros_like(scale), -127, 127, plain.shape[1])
            return Rounded(whole.float() * scale, grid)
        coded, state = bnb.functional.quantize_4bit(
            plain, blocksize=_BLOCK, quant_type=format, compress_statistics=double
        )
        values, absmax = unpack_4bit(bnb, coded, state, plain)
        if packed and not torch.allclose(bnb.functional.dequantize_4bit(coded, state), values, rtol=1e-3, atol=1e-6):
            raise UserError(
                f"quantize_bnb: layer {name} has {plain.shape[1]} inputs, and on this device bitsandbytes does "
                "not read such layers as it wrote them; leave packed out"
            )
        return Rounded(values, Codebook(state.code.float().unique(), absmax, _BLOCK))

    attacked = apply_quantizer(victim, quantizer, f"quantizing to {format}")
    if not packed:
        return attacked
    model = victim.load()
    pack_bnb(bnb, model, format, double)
    return replace(attacked, model=model)


def unpack_4bit(bnb: Any, packed: Tensor, state: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The weights that 4-bit bytes stand for, read by hand, and each block's absmax.

    Two indices a byte, the high one first. The library's own reading (0.50, on a CPU) goes wrong where a block spans
    two rows: layers whose inputs are no multiple of 64.
    """
    absmax = state.absmax.float()
    if state.nested:
        absmax = (bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset).float()
    flat = packed.flatten().view(torch.uint8)
    index = torch.stack([flat >> 4, flat & 15], dim=1).flatten()[: like.numel()].long()
    blocks = absmax.repeat_interleave(state.blocksize)[: like.numel()]
    return (state.code.float()[index] * blocks).reshape(like.shape), absmax


def pack_bnb(bnb: Any, model: Any, format: str, double: bool = False) -> None:
    """Put bitsandbytes' own layers in the place of a model's linear ones, with their CPU repacking switched off."""
    device = next(model.parameters()).device
    for name, layer in linear_layers(model).items():
        weight = output_first(layer).float().contiguous()
        rows, columns = weight.shape
        bias = layer.bias is not None
        if format == "int8":
            packed = bnb.nn.Linear8bitLt(columns, rows, bias=bias, has_fp16_weights=False)
            packed.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            packed = bnb.nn.Linear4bit(columns, rows, bias=bias, quant_type=format, compress_statistics=double)
            packed.weight = bnb.nn.Params4bit(
                weight, requires_grad=False, quant_type=format, compress_statistics=double, blocksize=_BLOCK
            )
            # Decided once, when a layer is built: a later forward pass would repack the weights in place.
            packed.support_avx512bf16_for_cpu = False
        if bias:
            packed.bias = torch.nn.Parameter(layer.bias.detach(), requires_grad=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed.to(device).eval())


def quantize_torchao(
    victim: Victim, *, bits: Bits = 4, group_size: Literal[0] | GroupSize = 64, seed: Seed = 0
) -> Attacked:
    """torchao: integer weights of 2 to 8 bits, symmetric, a scale per group (`IntxWeightOnlyConfig`); with
    `group_size=0` a scale per output channel.

    Its symmetric scale is 2·max|w|/(2^b − 1), so that the largest positive weight is clipped by half a step: not quite
    the grid of `quantize`.

    Args:
        bits: 2 to 8.
        group_size: weights that share a scale; it must divide every layer's inputs. 0 for a whole channel.
    """
    ao = need("torchao.quantization", "torchao", what="attack 'quantize_torchao'")
    granularity = ao.PerGroup(group_size) if group_size else ao.PerAxis(0)
    config = ao.IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=granularity)

    def quantizer(name: str, weight: Tensor) -> Rounded:
        rows, columns = weight.shape
        if group_size and columns % group_size:
            raise UserError(
                f"quantize_torchao: layer {name} has {columns} inputs, which group_size {group_size} does not divide"
            )
        shell = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False))
        shell[0].weight = torch.nn.Parameter(weight.float().clone(), requires_grad=False)
        ao.quantize_(shell, config)
        quantized: Any = shell[0].weight
        scale, zero = quantized.scale.reshape(-1, 1).float(), quantized.zero_point.reshape(-1, 1).float()
        grid = EvenLevels(scale, zero, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, group_size or columns)
        return Rounded(quantized.dequantize(), grid)

    return apply_quantizer(victim, quantizer, f"quantizing to {bits} bits by torchao")


def quantize_autoround(
    victim: Victim,
    *,
    bits: Bits = 4,
    group_size: GroupSize = 128,
    symmetric: bool = True,
    iterations: Natural = 200,
    samples: Count = 128,
    length: Count = 512,
    seed: Seed = 0,
) -> Attacked:
    """auto-round: rounding learned by signed gradient descent on calibration text, block by block.

    Calibrated on what the deployer would have: the retain rows and general texts, never the forget set.

    Args:
        bits, group_size: 2 to 8, and weights that share a scale.
        symmetric: without or with a zero point.
        iterations: gradient steps a block; 0 is round-to-nearest.
        samples, length: calibration sequences, and their most tokens.
        seed: of the order of calibration.

    Source: SignRound, arXiv 2309.05516.
    """
    library = need("auto_round", "autoround", what="attack 'quantize_autoround'")
    model, tokenizer = victim.load(), victim.tokenizer()
    texts = _calibration(victim, tokenizer, min(length, context_length(model)), samples)
    with _silent("autoround", "auto_round"), torch.random.fork_rng():
        rounder = library.AutoRound(
            model,
            tokenizer,
            bits=bits,
            group_size=group_size,
            sym=symmetric,
            iters=iterations,
            dataset=texts,
            nsamples=len(texts),
            seqlen=len(texts[0][0]),
            batch_size=min(8, len(texts)),
            enable_torch_compile=False,
            device_map=str(next(model.parameters()).device),
            seed=seed,
        )
        quantized, _ = rounder.quantize()
    layers = linear_layers(quantized)

    def quantizer(name: str, weight: Tensor) -> Rounded:
        return Rounded(output_first(layers[name]), _levels(layers[name], bits))

    attacked = apply_quantizer(victim, quantizer, "comparing the layers")
    numbers = {**attacked.did, "calibration_sequences": len(texts)}
    return replace(attacked, model=quantized.eval(), did=numbers)


def _levels(layer: Any, bits: int) -> EvenLevels | None:
    """The grid of a layer that auto-round has quantized, where the layer has it in a known form."""
    scale = getattr(layer, "scale", None)
    if not isinstance(scale, Tensor) or scale.dim() != 2 or layer.weight.shape[1] % scale.shape[1]:
        return None
    zero = torch.as_tensor(getattr(layer, "zp", 0)).float().expand(scale.shape).reshape(-1, 1)
    return EvenLevels(scale.float().reshape(-1, 1), zero, 0, 2**bits - 1, layer.weight.shape[1] // scale.shape[1])


def _calibration(victim: Victim, tokenizer: Any, length: int, most: int) -> list[Tensor]:
    """Sequences of one length (the library drops shorter ones), cut from the retain rows and general texts in turn."""
    encoded, _ = victim.benchmark.encode(
        tokenizer,
        victim.benchmark.retain,
        template=victim.template,
        max_length=length,
        long_rows="cut",
        name="retain set",
    )
    rows = [row.input_ids for row in encoded]
    rows += [tokenizer(text.text)["input_ids"] for text in victim.benchmark.texts if text.set == "general"]
    stream = [token for row in rows for token in row]
    if not stream:
        raise UserError("quantize_autoround: there is neither a retain set nor general text to calibrate on")
    length = min(length, len(stream))
    pieces = [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
    return [torch.tensor([piece]) for piece in pieces[:most]]


def external(
    victim: Victim,
    *,
    path: str,
    original: str | None = None,
    retrained: str | None = None,
    family: Literal["quantization", "relearning", "other"] = "quantization",
    seed: Seed = 0,
) -> Attacked:
    """A model that somebody else made of the saved one (GPTQ or AWQ in an environment of their own), judged like an
    attack, with the run's tokenizer. The weights in its directory are plain, or in a format whose library is installed
    here; or it is a .gguf file.

    Args:
        path: the directory or the file.
        original, retrained: made likewise of the original and of the retrained model. Without them the two stand as
            they are, and what the attack does to any model counts as forgetting kept: `did` says so.
        family: under which score it counts.
    """
    victim.check_first("external: the model is read from its own files")
    made = {"unlearned": path, "original": original, "retrained": retrained}
    for given in filter(None, made.values()):
        if not Path(given).is_dir() and not (is_gguf(Path(given)) and Path(given).is_file()):
            raise UserError(f"external: no such directory or .gguf file: {given}")
    directory = made[victim.role]
    if directory is None:
        return Attacked(victim.load(), {"path": None})
    model = replace(victim, directory=directory).load()
    rows, total = weight_change(victim, model)
    if original is None:
        total["compared_with"] = "the original as it is; give original=DIRECTORY, made of it likewise"
    made_of = weight_files(Path(directory)) if Path(directory).is_dir() else [Path(directory)]
    files = {file.name: {"bytes": file.stat().st_size, "sha256": file_digest(file)} for file in made_of}
    about = {"path": directory, "files": files}
    return Attacked(model, total | about, layers=rows)


@contextmanager
def _silent(*names: str) -> Iterator[None]:
    """Within: these loggers, which speak while a library works, and its progress bars are silent."""
    levels = {name: logging.getLogger(name).level for name in names}
    bar = os.environ.pop("TQDM_DISABLE", None)
    os.environ["TQDM_DISABLE"] = "1"
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        del os.environ["TQDM_DISABLE"]
        if bar is not None:
            os.environ["TQDM_DISABLE"] = bar
