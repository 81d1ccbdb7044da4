"""A run in a process of its own, its peak of resident memory measured, and what the plan said of it.

python -m tests.planning.measured NAME [NAME …]     measure cases, one line each
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from letgo.planning import plan
from letgo.training.config import make_config

ROOT = Path(__file__).parents[2]
LLAMA = {"kind": "llama", "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10}
SMOL = {"kind": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
GPT2 = {"kind": "gpt2", "vocab_size": 16384, "n_embd": 512, "n_layer": 10}
DEEP = {"kind": "llama", "vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 20}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Seen while the plan was calibrated.
    "adamw": (SMOL, {"optimizer": "adamw"}),
    "sgd": (SMOL, {"optimizer": "sgd"}),
    "zo_sgd": (SMOL, {"optimizer": "zo_sgd"}),
    "lora": (SMOL, {"optimizer": "adamw", "lora_rank": 8}),
    "bf16": (SMOL, {"optimizer": "adamw", "dtype": "bfloat16"}),
    "qlora": (LLAMA, {"optimizer": "adamw", "lora_rank": 8, "base_quantization": "nf4"}),
    # Held out: looked at once the plan was as it is.
    "kl": (LLAMA, {"optimizer": "adamw", "objective": "npo_klr"}),
    "sam": (LLAMA, {"optimizer": "sam"}),
    "gpt2": (GPT2, {"optimizer": "sign_adam", "objective": "graddiff"}),
    "rmu": (LLAMA, {"optimizer": "adamw", "objective": "rmu"}),
    "hybrid": (LLAMA, {"optimizer": "fozo", "optimizer_args": {"fo_steps": 2, "zo_steps": 1}}),
    "deep_bf16": (DEEP, {"optimizer": "adamw", "dtype": "bfloat16", "per_device_train_batch_size": 16}),
    "accumulated": (DEEP, {"optimizer": "sgd", "gradient_accumulation_steps": 2}),
    "lora_sgd": (LLAMA, {"optimizer": "sgd", "lora_rank": 4}),
    "undial": (LLAMA, {"optimizer": "adamw", "objective": "undial"}),
    "whp": (LLAMA, {"objective": "whp", "objective_args": {"reinforce_epochs": 1, "epochs": 1}}),
    "influence": (LLAMA, {"objective": "influence", "objective_args": {"samples": 8, "held": 4}}),
}
CALIBRATED = ("adamw", "sgd", "zo_sgd", "lora", "bf16", "qlora")
TESTED = ("sam", "gpt2", "deep_bf16", "lora_sgd", "influence")
"""The held-out cases that the tests measure: half a minute each. The others are measured by this module's command."""

SCRIPT = """
import ctypes, json, sys
import peft, transformers, letgo.training.unlearn, letgo.attacks.engine.run, letgo.report.card, letgo.planning
from letgo.training.config import make_config
from letgo.planning.machine import resident_bytes
from letgo.core.progress import quiet_libraries
quiet_libraries()
import transformers.models.{kind}.modeling_{kind}
# A page of a library that the system takes back meanwhile would be missing in the peak: those here by now (MCL_CURRENT)
# are locked as they are (MCL_ONFAULT), where that is allowed.
ctypes.CDLL(None).mlockall(1 | 4)
before = resident_bytes()
open("/proc/self/clear_refs", "w").write("5")
letgo.training.unlearn.unlearn(make_config(json.loads(sys.argv[1])))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({{"peak": 1024 * int(peak.split()[1]) - before}}))
"""


def make_directory(shape: dict[str, Any], dtype: str, directory: Path) -> None:
    """A random model of a shape, with the tests' tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    from tests import tiny

    settings = {key: value for key, value in shape.items() if key != "kind"}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if shape["kind"] == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**settings, n_head=8, n_positions=256, **ends))
    else:
        heads = settings["hidden_size"] // 64
        model = LlamaForCausalLM(
            LlamaConfig(
                **settings, num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=True, **ends
            )
        )
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    tiny.make_tokenizer().save_pretrained(directory)


def settings_in(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """A run's settings, and its data written."""
    from tests import tiny

    words = tiny.WORDS[7:33]
    for part, step in (("forget", 1), ("retain", -1)):
        rows = [
            {"text": " ".join(words[(row + step * place) % len(words)] for place in range(60))} for row in range(16)
        ]
        tiny.write_jsonl(folder / f"{part}.jsonl", [{**row, "group": str(i)} for i, row in enumerate(rows)])
    return {
        "model": str(folder / "model"),
        "forget": str(folder / "forget.jsonl"),
        "retain": str(folder / "retain.jsonl"),
        "learning_rate": 1e-6,
        "max_steps": 2,
        "save_strategy": "no",
        "eval_limit": 1,
        "use_cpu": True,
        "output_dir": str(folder / "run"),
    } | changes


def run_case(name: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """Measured bytes beyond the process itself, and the plan's own account."""
    shape, changes = CASES[name]
    make_directory(shape, changes.get("dtype", "float32"), folder / "model")
    settings = settings_in(folder, changes)
    environment = {**os.environ, "LETGO_REFERENCES": str(folder / "references"), "OMP_NUM_THREADS": "1"}
    script = SCRIPT.format(kind=shape["kind"])
    command = [sys.executable, "-c", script, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    planned = plan(make_config(settings), flops=1e10).as_dict()
    return json.loads(done.stdout.splitlines()[-1])["peak"], planned


def main() -> None:
    for name in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as folder:
            peak, planned = run_case(name, Path(folder))
        phases = {phase["name"]: phase["total"] for phase in planned["phases"]}
        most = max(phases.values())
        print(f"{name:12} measured {peak / 1e6:7.0f} MB planned {most / 1e6:7.0f} MB ratio {most / peak:.3f}", end="  ")
        print({key: round(value / 1e6) for key, value in phases.items()}, flush=True)


if __name__ == "__main__":
    main()
