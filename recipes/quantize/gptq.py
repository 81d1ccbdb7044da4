"""Quantize a saved run to 4 bits by GPTQ or AWQ (llmcompressor), and leave its weights dequantized, to be attacked:

    python3.11 -m venv gptq
    gptq/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1
    gptq/bin/python recipes/quantize/gptq.py RUN RUN-gptq --calibration texts.jsonl
    gptq/bin/python recipes/quantize/gptq.py ORIGINAL ORIGINAL-gptq --calibration texts.jsonl
    letgo attack RUN --attack external:path=RUN-gptq,original=ORIGINAL-gptq

The original is quantized alike: what GPTQ does to any model is not forgetting.
llmcompressor asks for another transformers than letgo, hence an environment of its own. Nothing of letgo is imported.
Tried with llmcompressor 0.14.0.1, compressed-tensors 0.19.0, transformers 5.17.0, torch 2.13.0, on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="4-bit weights by GPTQ or AWQ, saved dequantized.")
    parser.add_argument("run", type=Path, help="a directory with the whole model; an adapter must be merged first")
    parser.add_argument("output", type=Path, help="where the quantized model goes; not the run")
    parser.add_argument(
        "--calibration",
        type=Path,
        required=True,
        help="JSON lines that the deployer would have, such as the retain set",
    )
    parser.add_argument("--method", choices=("gptq", "awq"), default="gptq")
    parser.add_argument("--scheme", default="W4A16", help="W4A16 (symmetric), W4A16_ASYM, W8A16; groups of 128")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512, help="tokens of a calibration text, at most")
    asked = parser.parse_args()
    if (asked.run / "adapter_config.json").exists():
        sys.exit(f"{asked.run} is an adapter: save the merged model first")
    if asked.output.exists() and any(asked.output.iterdir()):
        sys.exit(f"{asked.output} is not empty")
    model = AutoModelForCausalLM.from_pretrained(asked.run, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(asked.run)
    rows = calibration(asked.calibration, tokenizer, asked.samples, asked.length)
    print(f"calibrating {asked.method} on {len(rows)} texts", file=sys.stderr)
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=modifiers(asked.method, asked.scheme),
        max_seq_length=asked.length,
        num_calibration_samples=len(rows),
    )
    # A new model with the same names, so that nothing of the quantization format is saved with the weights.
    plain = AutoModelForCausalLM.from_pretrained(asked.run, dtype=torch.float32)
    plain.load_state_dict(dequantized(model, plain.state_dict().keys()))
    plain.save_pretrained(asked.output)
    tokenizer.save_pretrained(asked.output)


def modifiers(method: str, scheme: str) -> list[Any]:
    """The output layer stays, as in letgo's own quantizers."""
    what = {"targets": "Linear", "scheme": scheme, "ignore": ["lm_head"]}
    if method == "gptq":
        return [GPTQModifier(**what)]
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        # It pins memory for a transfer to an accelerator, which fails where there is none (0.14.0.1).
        IntermediatesCache.pin_memory = lambda *_, **__: None
    return [AWQModifier(), QuantizationModifier(**what)]


def calibration(path: Path, tokenizer: Any, samples: int, length: int) -> list[dict[str, list[int]]]:
    """The first texts of a file: of each line `text`, or `prompt` and `completion`, or `question` and `answer`."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if len(rows) == samples:
            break
        if line.strip():
            row = json.loads(line)
            parts = [row[key] for key in ("text", "prompt", "completion", "question", "answer") if key in row]
            encoded = tokenizer(
                "".join(parts) if "prompt" in row else "\n".join(parts), truncation=True, max_length=length
            )
            rows.append({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]})
    if not rows:
        sys.exit(f"{path} has no text")
    return rows


def dequantized(model: Any, names: Any) -> dict[str, torch.Tensor]:
    """The weights by the names of the plain model; those of quantized layers rounded to the levels found for them."""
    state = model.state_dict()
    found = {name: state[name].float() for name in names}
    quantized = 0
    for name, layer in model.named_modules():
        scheme = getattr(layer, "quantization_scheme", None)
        if scheme is None or scheme.weights is None:
            continue
        # GPTQ leaves its rounded weights, which this does not change; AWQ leaves them to be rounded.
        found[f"{name}.weight"] = fake_quantize(
            layer.weight.detach(), layer.weight_scale, layer.weight_zero_point, scheme.weights
        ).float()
        quantized += 1
    if not quantized:
        sys.exit("no layer was quantized: the scheme fits none")
    print(f"{quantized} layers quantized", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
