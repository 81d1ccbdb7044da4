"""Speed of the scoring engine, as ratios to the loop of one sample at a time, and to plain forward passes.

    python perf/evaluation.py [--quick] [--json FILE] [--threads N] [--runs N] [--only NAME]

The model is SmolLM2-135M-Instruct (`--quick`: a small one with random weights). Texts are random tokens in the lengths
of the benchmarks' own (so answers share no words: on real answers the engine saves more), and neither side stops at an
end token. Both sides of a ratio are timed in turn in one run and per sample; the loop, whose time grows with the number
of samples and nothing else, is timed on fewer of them. Scoring is held against the fastest of several plain forward
passes over the very same texts, and, without a goal, against the fastest plain pass over rows of any length.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

GOALS = {"knowmem": 6.0, "truth_ratio": 1.9, "verbatim": 4.0, "answers": 0.9, "texts": 0.9}
SHAPES = [(1, 256), (1, 512), (2, 256), (4, 128), (8, 64), (4, 256), (2, 512), (16, 64), (8, 128), (1, 1024)]
"""Rows and lengths among which the fastest plain forward pass of any length is found."""


def load(quick: bool) -> Any:
    if not quick:
        from letgo.core.progress import quiet_libraries
        from letgo.models.load import load_model

        quiet_libraries()
        return load_model("smollm2", device="cpu")
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 4096, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=4096)).eval()


class NoText:
    """The engine decodes what it generates; here only the tokens are looked at, and nothing ends them early."""

    eos_token_id = None

    def decode(self, tokens: list[int], **settings: Any) -> str:
        return ""


class Bench:
    def __init__(self, model: Any, quick: bool, runs: int) -> None:
        self.model, self.quick, self.runs = model, quick, runs
        self.generator = torch.Generator().manual_seed(0)
        # Before anything is timed: no answer ends early on either side.
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0

    def tokens(self, low: int, high: int | None = None) -> list[int]:
        count = int(torch.randint(low, (high or low) + 1, (1,), generator=self.generator))
        return torch.randint(10, self.model.config.vocab_size, (count,), generator=self.generator).tolist()

    def generate_one(self, prompt: list[int], room: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False
            )
        return out[0, len(prompt) :].tolist()

    def generation(self, name: str, prompts: list[list[int]], room: int, looped: int) -> dict[str, Any]:
        from letgo.scoring.scoring import generate

        same = [0, 0]

        def ours() -> None:
            self.generated = generate(self.model, NoText(), prompts, max_new_tokens=room)

        def loop() -> None:
            for place in range(looped):
                tokens = tuple(self.generate_one(prompts[place], room))
                same[0] += tokens == self.generated[place][0].tokens
                same[1] += 1

        timing = self.timed(ours, loop, len(prompts), looped)
        return self.row(name, timing, "samples/s", note=f"{same[0]} of {same[1]} answers the same tokens")

    def knowmem(self) -> list[dict[str, Any]]:
        examples = [token for _ in range(10) for token in self.tokens(30, 50)]
        prompts = [[*examples, *self.tokens(12, 30)] for _ in range(8 if self.quick else 100)]
        return [self.generation("knowmem", prompts, 32, 2 if self.quick else 6)]

    def verbatim(self) -> list[dict[str, Any]]:
        prompts = [self.tokens(100, 140) for _ in range(8 if self.quick else 100)]
        return [self.generation("verbatim", prompts, 128, 1 if self.quick else 3)]

    def loop_logps(self, prefix: list[int], continuation: list[int]) -> torch.Tensor:
        ids = torch.tensor([prefix + continuation])
        with torch.no_grad():
            logits = self.model(input_ids=ids).logits[0, len(prefix) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, ids[0, len(prefix) :, None])[:, 0]

    def truth_ratio(self) -> list[dict[str, Any]]:
        from letgo.scoring.scoring import Query, continuation_logps

        count, looped = (6, 3) if self.quick else (60, 10)
        queries = [Query(self.tokens(16, 34), [self.tokens(25, 60) for _ in range(6)]) for _ in range(count)]

        found: dict[str, list[list[torch.Tensor]]] = {}

        def ours() -> None:
            found["engine"] = continuation_logps(self.model, queries)

        def loop() -> None:
            found["loop"] = [
                [self.loop_logps(list(query.prefix), list(continuation)) for continuation in query.continuations]
                for query in queries[:looped]
            ]

        timing = self.timed(ours, loop, count, looped)
        both = (itertools.chain(*found["engine"][:looped]), itertools.chain(*found["loop"]))
        pairs = zip(*both, strict=True)
        apart = max(float((one - other).abs().max()) for one, other in pairs)
        return [self.row("truth_ratio", timing, "questions/s", note=f"log-probabilities differ by at most {apart:.1g}")]

    def any_length(self) -> tuple[Callable[[], None], int, str]:
        """The fastest plain forward pass of any length, its tokens, and its shape; all shapes are timed in turn."""
        passes = {
            (rows, length): self.plain([self.tokens(length) for _ in range(rows)], rows) for rows, length in SHAPES
        }
        times = self.in_turn(passes)
        best = min(times, key=lambda shape: times[shape] / (shape[0] * shape[1]))
        return passes[best], best[0] * best[1], f"{best[0]} x {best[1]}"

    def plain(self, texts: list[list[int]], rows: int) -> Callable[[], None]:
        """Forward passes over texts, `rows` of like length at once, with all logits and no cache.

        Short rows are filled up on the right; no mask is given, for with causal attention no real token sees what
        stands behind it, and without one attention takes its fastest way. Nothing is done with the logits.
        """
        ordered = sorted(texts, key=len)
        batches = []
        for first in range(0, len(ordered), rows):
            chosen = ordered[first : first + rows]
            widest = max(map(len, chosen))
            batches.append(torch.tensor([[*text, *[0] * (widest - len(text))] for text in chosen]))

        def run() -> None:
            with torch.no_grad():
                for ids in batches:
                    _ = self.model(input_ids=ids, use_cache=False).logits

        return run

    def answers(self) -> Iterator[dict[str, Any]]:
        """Questions with one answer, in real tokens per second."""
        from letgo.scoring.scoring import Query, continuation_logps

        queries = [Query(self.tokens(16, 34), [self.tokens(25, 60)]) for _ in range(12 if self.quick else 60)]
        cases = {"answers": ("one answer a question", lambda: continuation_logps(self.model, queries))}
        return self.throughput(queries, (1, 2, 4, 8, 16, len(queries)), cases)

    def texts(self) -> Iterator[dict[str, Any]]:
        """Long texts, with Min-K++'s statistics or without, in real tokens per second."""
        from letgo.scoring.scoring import continuation_logps, score, text_query

        length = 300 if self.quick else 1700
        queries = [text_query(self.tokens(length)) for _ in range(2)]
        cases = {
            "texts": (f"{length:,}-token texts, Min-K", lambda: continuation_logps(self.model, queries)),
            "texts++": (f"{length:,}-token texts, Min-K++", lambda: score(self.model, queries, statistics=True)),
        }
        return self.throughput(queries, (1, 2), cases)

    def throughput(
        self, queries: list[Any], shapes: tuple[int, ...], cases: dict[str, tuple[str, Callable[[], Any]]]
    ) -> Iterator[dict[str, Any]]:
        """Rows of cases over the same queries.

        The base that has a goal is the fastest of several plain ways over the very same texts; the rows "… any" have
        the fastest plain pass of any length as base, whatever it runs over (short rows spend less on attention).
        """
        forward, tokens, shape = self.any_length()
        same = [[*query.prefix, *query.continuations[0]] for query in queries]
        real = sum(map(len, same))
        ways: dict[Any, Callable[[], Any]] = {rows: self.plain(same, rows) for rows in shapes}
        times = self.in_turn({**ways, "any": forward, **{name: run for name, (_, run) in cases.items()}})
        best = min(ways, key=lambda rows: times[rows])
        for name, (what, _) in cases.items():
            base, other = real / times[best], tokens / times["any"]
            ours = real / times[name]
            note = f"{what}; plain: the same texts, {best} at once, all logits"
            yield self.row(name, (ours, base, ours / base), "real tokens/s", note=note)
            note = f"{what}; plain: {shape}, the fastest of any length, all logits"
            yield self.row(f"{name} any", (ours, other, ours / other), "real tokens/s", note=note)

    def in_turn(self, functions: dict[Any, Callable[[], Any]]) -> dict[Any, float]:
        """The median of each function's seconds; all are run once before, then in turn, as often as there are runs."""
        for function in functions.values():
            function()
        times = [{name: seconds(function) for name, function in functions.items()} for _ in range(self.runs)]
        return {name: statistics.median(one[name] for one in times) for name in functions}

    def timed(
        self, ours: Callable[[], None], loop: Callable[[], None], count: int, looped: int
    ) -> tuple[float, float, float]:
        """Samples per second of both, and their ratio."""
        times = self.in_turn({"ours": ours, "loop": loop})
        fast, slow = times["ours"] / count, times["loop"] / looped
        return 1 / fast, 1 / slow, slow / fast

    def row(self, name: str, timing: tuple[float, float, float], unit: str, note: str = "") -> dict[str, Any]:
        where = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        return {
            "name": name,
            "ratio": round(timing[2], 4),
            "goal": GOALS.get(name),
            "better": "higher",
            "value": timing[0],
            "base": timing[1],
            "unit": unit,
            "note": note,
            "runs": self.runs,
            "machine": f"{where}, torch {torch.__version__}",
        }


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parts = ("knowmem", "truth_ratio", "verbatim", "answers", "texts")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, few samples, one run")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--runs", type=int, help="repetitions (default 3, with --quick 1)")
    parser.add_argument("--only", choices=parts, action="append", help="this part alone (may be given several times)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    bench = Bench(load(arguments.quick), arguments.quick, arguments.runs or (1 if arguments.quick else 3))
    rows = []
    print(f"{'':14} {'engine':>10} {'base':>10} {'ratio':>7} {'goal':>5}")
    for part in parts:
        if part in (arguments.only or parts):
            for r in getattr(bench, part)():
                rows.append(r)
                goal = "" if r["goal"] is None else r["goal"]
                figures = f"{r['value']:10.4g} {r['base']:10.4g} {r['ratio']:7.3f} {goal:>5}"
                print(f"{r['name']:14} {figures}  {r['unit']}; {r['note']}", flush=True)
    print(rows[0]["machine"])
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
