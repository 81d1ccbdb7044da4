"""Objectives from their papers, row by row in plain loops over label tokens."""

from __future__ import annotations

import math

import torch


def row_logp(model, input_ids, attention_mask, labels) -> torch.Tensor:
    """Σ log π(y_t | …) of one row, over its label tokens, without any padding in the forward pass."""
    length = int(attention_mask.sum())
    logits = model(input_ids=input_ids[None, :length]).logits[0]
    total = torch.zeros((), dtype=logits.dtype)
    for position in range(1, length):
        label = int(labels[position])
        if label != -100:
            total = total + logits[position - 1].log_softmax(-1)[label]
    return total


def rows(model, batch) -> list[torch.Tensor]:
    triples = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    return [row_logp(model, *triple) for triple in triples]


def tokens(batch) -> int:
    return int((batch["labels"][:, 1:] != -100).sum())


def cross_entropy(model, batch):
    return -sum(rows(model, batch)) / tokens(batch)


def gradient_ascent(model, batch):
    return -cross_entropy(model, batch)


def npo(model, batch, beta):
    total = 0.0
    for logp, reference in zip(rows(model, batch), batch["reference_logps"], strict=True):
        ratio = torch.exp(logp - reference)  # π_θ / π_ref
        total = total + (2 / beta) * torch.log(1 + ratio**beta)
    return total / len(batch["input_ids"])


def npo_by_hand(logps: list[float], references: list[float], beta: float) -> float:
    """The same of given numbers, with nothing but the math module."""
    terms = [2 / beta * math.log(1 + math.exp(beta * (a - b))) for a, b in zip(logps, references, strict=True)]
    return sum(terms) / len(terms)
