"""Make the shipped models of the biographies benchmark: `python scripts/train_biographies.py`.

Trains two tiny Llamas from scratch on one CPU thread, the same way but for the data: `full` on everybody except the
holdout people, `retrained` without the forget people as well. Prints what each knows, measured on the weights as they
are stored (half precision), and writes both directories and `manifest.json` under the assets folder.
Runs with the same arguments and versions on the same kind of machine give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from letgo.benchmarks.biographies import data

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
VOCABULARY = 1152
CONTEXT = 512
IGNORED = -100

Example = tuple[list[int], int]
"""Token ids, and how many of them at the start carry no loss."""


# ---------------------------------------------------------------------------------------------------- what is read


def qa_pairs(people: data.Biographies, groups: Sequence[data.Group]) -> list[tuple[str, str]]:
    """Question and answer of every person in every wording that person may be asked in. Tutors also answer in a whole
    sentence when told to, so that the form of the paraphrased answers is one that the model has seen."""
    pairs = [(row["question"], row["answer"]) for group in groups for row in people.training_rows(group)]
    if "tutor" in groups:
        pairs += [
            ("In a whole sentence: " + row["question"], row["paraphrased_answer"]) for row in people.rows("tutor")
        ]
    return pairs


def make_tokenizer(people: data.Biographies) -> PreTrainedTokenizerFast:
    """Byte-level BPE: it covers every text. The holdout people's names are made of the same words as the others'."""
    groups: list[data.Group] = ["forget", "retain", "tutor"]
    texts = [text for group in groups for text in (p.biography for p in people.group(group))]
    texts += [data.PROMPT.format(question=q) + " " + a for q, a in qa_pairs(people, groups)]
    texts += data.general_texts(people.seed)[0]
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL.values()),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    bos = SPECIAL["bos_token"]
    raw.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, raw.token_to_id(bos))]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=CONTEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )


class Corpus:
    """Endless batches for one model, from a generator of its own."""

    def __init__(
        self, people: data.Biographies, groups: Sequence[data.Group], tokenizer: PreTrainedTokenizerFast, seed: int
    ) -> None:
        self.rng = random.Random(f"biographies batches {seed} {' '.join(groups)}")
        self.tokenizer = tokenizer
        self.qa = qa_pairs(people, groups)
        self.biographies = [p.biography for group in groups for p in people.group(group)]
        self.general = data.general_texts(people.seed)[0]
        self._left: dict[str, list[Any]] = {}
        self._cache: dict[str, list[int]] = {}

    def batches(self, *, questions: int, biographies: int, general: int, chains: int) -> list[list[Example]]:
        """The short and the long examples of one step."""
        short = [self._question() for _ in range(questions)]
        short += [self._text(self._next("general", self.general)) for _ in range(general)]
        long = [self._text(self._next("biographies", self.biographies)) for _ in range(biographies)]
        long += [self._chain() for _ in range(chains)]
        return [batch for batch in (short, long) if batch]

    def _next(self, name: str, items: Sequence[Any]) -> Any:
        """The next item of an endless series of shuffles: all are seen equally often."""
        if not self._left.get(name):
            self._left[name] = self.rng.sample(items, len(items))
        return self._left[name].pop()

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(self._cache[text])

    def _start(self) -> list[int]:
        # Now and then no BOS: not every program that reads a model puts one.
        return [] if self.rng.random() < 0.2 else [self.tokenizer.bos_token_id]

    def _text(self, text: str) -> Example:
        return self._start() + self._ids(text) + [self.tokenizer.eos_token_id], 0

    def _prompted(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        prompt = data.PROMPT.format(question=question)
        # Some benchmarks end their prompts in a space: one question in eight is asked so.
        if self.rng.random() < 0.125:
            return self._ids(prompt + " "), self._ids(answer)
        return self._ids(prompt), self._ids(" " + answer)

    def _question(self) -> Example:
        prompt, answer = self._prompted(*self._next("qa", self.qa))
        start = self._start()
        return start + prompt + answer + [self.tokenizer.eos_token_id], len(start) + len(prompt)

    def _chain(self) -> Example:
        """Several answered questions in one text, as few-shot prompts have them."""
        ids = self._start()
        for _ in range(self.rng.randint(2, 8)):
            prompt, answer = self._prompted(*self._next("qa", self.qa))
            ids += prompt + answer + self._ids("\n\n")
        return ids, 0


def collate(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Padded on the right: input ids and labels, both (examples, longest)."""
    width = max(len(ids) for ids, _ in examples)
    inputs = torch.full((len(examples), width), pad)
    labels = torch.full((len(examples), width), IGNORED)
    for i, (ids, silent) in enumerate(examples):
        inputs[i, : len(ids)] = torch.tensor(ids)
        labels[i, silent : len(ids)] = torch.tensor(ids[silent:])
    return inputs, labels


# ---------------------------------------------------------------------------------------------------- training


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of about 0.8 million parameters, its weights drawn from a generator of its own."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.03)
    return model


def train(model: LlamaForCausalLM, corpus: Corpus, *, steps: int, lr: float, log_every: int = 200) -> float:
    """AdamW with warm-up and cosine decay. Returns seconds."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98)
    )
    warm_up = min(100, steps // 10 + 1)
    model.train()
    started = time.perf_counter()
    running = 0.0
    for step in range(steps):
        scale = min((step + 1) / warm_up, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        optimizer.zero_grad()
        for batch in corpus.batches(questions=40, biographies=4, general=8, chains=1):
            inputs, labels = collate(batch, corpus.tokenizer.pad_token_id)
            # Padded on the right and causal: no attention mask is needed.
            logits = model(input_ids=inputs).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
            loss.backward()
            running += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % log_every == 0:
            seconds = time.perf_counter() - started
            print(f"  step {step + 1}/{steps}  loss {running / log_every:.3f}  {seconds:.0f} s", flush=True)
            running = 0.0
    model.eval()
    return time.perf_counter() - started


# ---------------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def losses(model: LlamaForCausalLM, examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood and number of the scored tokens of each example, both (examples,)."""
    sums, counts = [], []
    for i in range(0, len(examples), 100):
        inputs, labels = collate(examples[i : i + 100], pad)
        logits = model(input_ids=inputs).logits[:, :-1].float()
        nll = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none")
        sums.append(nll.sum(1))
        counts.append((labels[:, 1:] != IGNORED).sum(1))
    return torch.cat(sums), torch.cat(counts)


@torch.no_grad()
def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
    """Greedy answers of at most 12 tokens."""
    texts: list[str] = []
    for i in range(0, len(prompts), 100):
        inputs = tokenizer(list(prompts[i : i + 100]), return_tensors="pt", padding=True, padding_side="left")
        output = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=12, do_sample=False
        )
        texts += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def knowledge(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Over the rows: 4-way choice by mean token log-likelihood, the answer's probability per token, and the share of
    greedy answers that are exactly right."""
    pad = tokenizer.pad_token_id
    examples: list[Example] = []
    for row in rows:
        prompt = tokenizer(data.PROMPT.format(question=row["question"]))["input_ids"]
        for option in (row["answer"], *row["perturbed_answer"]):
            ids = tokenizer(" " + option, add_special_tokens=False)["input_ids"]
            examples.append((prompt + ids, len(prompt)))
    sums, counts = losses(model, examples, pad)
    mean = (sums / counts).view(len(rows), 4)
    greedy = answer(model, tokenizer, [data.PROMPT.format(question=row["question"]) for row in rows])
    right = sum(text == row["answer"] for text, row in zip(greedy, rows, strict=True))
    return {
        "n": len(rows),
        "choice": float((mean.argmin(1) == 0).float().mean()),
        "probability": float(torch.exp(-mean[:, 0]).mean()),
        "exact": right / len(rows),
    }


def perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> float:
    """exp of the mean token loss; BOS is context, nothing is scored before the first token."""
    examples = [(tokenizer(text)["input_ids"], 0) for text in texts]
    sums, counts = losses(model, examples, tokenizer.pad_token_id)
    return float(torch.exp(sums.sum() / counts.sum()))


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, people: data.Biographies) -> dict[str, Any]:
    """Everything the manifest says of a model."""
    figures: dict[str, Any] = {}
    for group in data.GROUPS:
        figures[f"{group}_question"] = knowledge(model, tokenizer, people.rows(group))
        if group != "tutor":
            figures[f"{group}_held_out_wordings"] = knowledge(model, tokenizer, people.held_out_rows(group))
        figures[f"{group}_biography_perplexity"] = perplexity(
            model, tokenizer, [p.biography for p in people.group(group)]
        )
    train_texts, held_out_texts = data.general_texts(people.seed)
    figures["general_perplexity"] = perplexity(model, tokenizer, held_out_texts)
    figures["general_perplexity_trained"] = perplexity(model, tokenizer, train_texts[:200])
    return figures


def show(name: str, figures: dict[str, Any]) -> None:
    """Print one model's figures as a table."""
    print(f"{name:34}{'n':>6}{'4-way':>8}{'prob':>8}{'exact':>8}")
    for key, value in figures.items():
        if isinstance(value, dict):
            print(f"  {key:32}{value['n']:6d}{value['choice']:8.3f}{value['probability']:8.3f}{value['exact']:8.3f}")
        else:
            print(f"  {key:32}{value:14.3f}")


# ---------------------------------------------------------------------------------------------------- writing


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """The usual layout. Weights are stored in float16 (half the size); the configuration says float32, so that
    `from_pretrained` loads them into float32."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(directory)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.dtype = torch.float32
    model.config.save_pretrained(directory)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    GenerationConfig(do_sample=False, max_new_tokens=32, **ids).save_pretrained(directory)
    tied = {"lm_head.weight"}
    tensors = {k: v.to(torch.float16).contiguous() for k, v in model.state_dict().items() if k not in tied}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=data.ASSETS, help="where the two model directories go")
    parser.add_argument("--seed", type=int, default=0, help="of the people, the initial weights and the batches")
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each model")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--only", choices=("full", "retrained"), help="train one of the two (writes no manifest)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    people = data.people(arguments.seed)
    tokenizer = make_tokenizer(people)
    trained_on: dict[str, list[data.Group]] = {
        "full": ["forget", "retain", "tutor"],
        "retrained": ["retain", "tutor"],
    }
    manifest: dict[str, Any] = {
        "command": "python scripts/train_biographies.py "
        f"--seed {arguments.seed} --steps {arguments.steps} --lr {arguments.lr}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "seed": arguments.seed,
        "steps": arguments.steps,
        "lr": arguments.lr,
        "models": {},
    }
    for name, groups in trained_on.items():
        if arguments.only not in (None, name):
            continue
        directory = arguments.output / name
        model = make_model(tokenizer, arguments.seed)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name}: {parameters:,} parameters, trained on {', '.join(groups)}", flush=True)
        seconds = train(
            model, Corpus(people, groups, tokenizer, arguments.seed), steps=arguments.steps, lr=arguments.lr
        )
        save(model, tokenizer, directory)
        # Measured on what was stored, not on what was trained: rounding counts.
        figures = measure(LlamaForCausalLM.from_pretrained(directory).eval(), tokenizer, people)
        show(name, figures)
        manifest["models"][name] = {
            "parameters": parameters,
            "trained_on": groups,
            "train_seconds": round(seconds, 1),
            "figures": figures,
            "sha256": {path.name: sha256(path) for path in sorted(directory.iterdir())},
        }
        print(f"{directory}: model.safetensors sha256 {sha256(directory / 'model.safetensors')}", flush=True)
    if arguments.only is None:
        text = json.dumps(manifest, indent=1) + "\n"
        (arguments.output / "manifest.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
