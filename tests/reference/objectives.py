"""Objectives from their papers, row by row in plain loops over label tokens, with a second model as the reference."""

from __future__ import annotations

import math

import torch


def row_logits(model, part, row) -> list[tuple[torch.Tensor, int]]:
    """(logits that predict it, label) for every label token of one row, without any padding in the forward pass."""
    length = int(part["attention_mask"][row].sum())
    logits = model(input_ids=part["input_ids"][row : row + 1, :length]).logits[0]
    labels = part["labels"][row]
    return [(logits[t - 1], int(labels[t])) for t in range(1, length) if int(labels[t]) != -100]


def row_tokens(model, part, row) -> list[torch.Tensor]:
    """log π(y_t | …) of every label token of one row."""
    return [logits.log_softmax(-1)[label] for logits, label in row_logits(model, part, row)]


def rows(model, part) -> list[torch.Tensor]:
    """Σ_t log π(y_t | …) of every row."""
    return [sum(row_tokens(model, part, row)) for row in range(len(part["labels"]))]


def tokens(part) -> int:
    return int((part["labels"][:, 1:] != -100).sum())


def over_tokens(part, value_of_row) -> torch.Tensor:
    """The mean over label tokens of values that a function gives for a row, one a token."""
    values = [value for row in range(len(part["labels"])) for value in value_of_row(row)]
    return sum(values) / len(values)


# -- forget terms: (model, original, batch, settings) ------------------------------------------------------------------


def gradient_ascent(model, original, batch):
    return over_tokens(batch["forget"], lambda row: row_tokens(model, batch["forget"], row))


def npo(model, original, batch, beta=0.1):
    part = batch["forget"]
    total = 0.0
    for logp, reference in zip(rows(model, part), rows(original, part), strict=True):
        ratio = torch.exp(logp - reference.detach())  # π_θ / π_ref
        total = total + (2 / beta) * torch.log(1 + ratio**beta)
    return total / len(part["labels"])


def npo_by_hand(logps: list[float], references: list[float], beta: float) -> float:
    """The same of given numbers, with nothing but the math module."""
    terms = [2 / beta * math.log(1 + math.exp(beta * (a - b))) for a, b in zip(logps, references, strict=True)]
    return sum(terms) / len(terms)


def simnpo(model, original, batch, beta=4.5, gamma=0.0):
    part = batch["forget"]
    total = 0.0
    for row in range(len(part["labels"])):
        logps = row_tokens(model, part, row)
        inner = -(beta / len(logps)) * sum(logps) - gamma
        total = total + (2 / beta) * torch.log(1 + torch.exp(-inner))
    return total / len(part["labels"])


def dpo(model, original, batch, beta=0.1):
    preferred, dispreferred = batch["alternative"], batch["forget"]
    pairs = [zip(rows(model, p), rows(original, p), strict=True) for p in (preferred, dispreferred)]
    ratios = [[a - b.detach() for a, b in pair] for pair in pairs]
    losses = [-torch.log(torch.sigmoid(beta * (w - l))) for w, l in zip(*ratios, strict=True)]  # noqa: E741
    return sum(losses) / len(losses)


def altpo(model, original, batch, beta=0.1):
    return 2 / beta * dpo(model, original, batch, beta)


def logit_margin(model, original, batch):
    part = batch["forget"]

    def of_row(row):
        return [(max(logits) - sum(logits) / len(logits)) ** 2 for logits, _ in row_logits(model, part, row)]

    return over_tokens(part, of_row)


def dual_weight(weight, retain_loss, bound, rate):
    """λ after a step of dual ascent."""
    moved = weight + rate * (retain_loss - bound)
    return moved if moved > 0 else 0.0


def preference_optimization(model, original, batch):
    return -over_tokens(batch["alternative"], lambda row: row_tokens(model, batch["alternative"], row))


def random_label(model, original, batch, labels=None):
    part = batch["forget"]
    given = iter(labels.tolist())
    return -over_tokens(
        part, lambda row: [logits.log_softmax(-1)[next(given)] for logits, _ in row_logits(model, part, row)]
    )


def undial(model, original, batch, strength=10.0):
    part = batch["forget"]

    def of_row(row):
        values = []
        pairs = zip(row_logits(model, part, row), row_logits(original, part, row), strict=True)
        for (logits, label), (teacher, _) in pairs:
            lowered = teacher.detach().clone()
            lowered[label] -= strength
            values.append(-sum(q * logp for q, logp in zip(lowered.softmax(-1), logits.log_softmax(-1), strict=True)))
        return values

    return over_tokens(part, of_row)


def ce_u(model, original, batch, ignore_first=0):
    part = batch["forget"]

    def of_row(row):
        values = []
        for number, (logits, label) in enumerate(row_logits(model, part, row)):
            others = [v for v in range(len(logits)) if v != label]
            target = logits.detach()[others].softmax(-1)
            value = -(target * logits.log_softmax(-1)[others]).sum()
            values.append(value if number >= ignore_first else 0.0 * value)
        return values

    return over_tokens(part, of_row)


def wga(model, original, batch, beta=1.0):
    part = batch["forget"]
    return over_tokens(part, lambda row: [math.exp(p.item()) ** beta * p for p in row_tokens(model, part, row)])


def satimp(model, original, batch, beta1=5.0, beta2=1.0):
    part = batch["forget"]

    def of_row(row):
        chances = [(math.exp(p.item()), p) for p in row_tokens(model, part, row)]
        return [c**beta1 * (1 - c) ** beta2 * p for c, p in chances]

    return over_tokens(part, of_row)


def after_block(model, part, row, layer):
    length = int(part["attention_mask"][row].sum())
    ids = part["input_ids"][row : row + 1, :length]
    return model(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]


def rmu(model, original, batch, layer=1, steering=6.5, direction=None):
    part = batch["forget"]
    squares = []
    for row in range(len(part["labels"])):
        squares += [((h - steering * direction) ** 2).sum() / len(h) for h in after_block(model, part, row, layer)]
    return sum(squares) / len(squares)


def mcu(model, original, batch, layer=1, steering=6.5, direction=None, removed=8):
    """With the components taken one after the other out of the original's states, Gram and Schmidt's way."""
    part, rows = batch["forget"], range(len(batch["forget"]["labels"]))
    with torch.no_grad():
        states = torch.stack([h for row in rows for h in after_block(original, part, row, layer)])
    mean = states.mean(0)
    _, _, leading = torch.linalg.svd(states - mean)
    basis = []
    for vector in [mean, *leading][:removed]:
        for earlier in basis:
            vector = vector - (vector @ earlier) * earlier
        basis.append(vector / vector.norm())
    squares = []
    for row in rows:
        for h in after_block(model, part, row, layer):
            for vector in basis:
                h = h - (h @ vector) * vector
            squares.append(((h - steering * direction) ** 2).sum() / len(h))
    return sum(squares) / len(squares)


def rmu_lat(model, original, batch, layer=1, steering=6.5, direction=None, attacked_layer=None, **inner):
    """With the shifts that the batch brings, row by row, added by a hook on the block's input."""
    part = batch["forget"]
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    number = layer if attacked_layer is None else attacked_layer
    squares, taken = [], 0
    for row in range(len(part["labels"])):
        length = int(part["attention_mask"][row].sum())
        shift = part["latent"][taken : taken + length]
        taken += length
        hook = blocks[number].register_forward_pre_hook(lambda m, args, shift=shift: (args[0] + shift, *args[1:]))
        squares += [((h - steering * direction) ** 2).sum() / len(h) for h in after_block(model, part, row, layer)]
        hook.remove()
    return sum(squares) / len(squares)


def latent_attack(model, part, row, block, steps, lr, radius):
    """δ of one row alone: Adam by hand on the row's mean loss, projected after every step."""
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    width = model.config.hidden_size
    delta = torch.zeros(int(part["attention_mask"][row].sum()), width, dtype=torch.float64)
    first, second = torch.zeros_like(delta), torch.zeros_like(delta)
    for step in range(1, steps + 1):
        delta.requires_grad_()
        hook = blocks[block].register_forward_pre_hook(lambda m, args, shift=delta: (args[0] + shift, *args[1:]))
        logps = row_tokens(model, part, row)
        hook.remove()
        [slope] = torch.autograd.grad(-sum(logps) / len(logps), [delta])
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        unbiased = first / (1 - 0.9**step), second / (1 - 0.999**step)
        delta = delta.detach() - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        delta = torch.stack([d if d.norm() <= radius else radius * d / d.norm() for d in delta])
    return delta


def no_term(model, original, batch):
    return torch.zeros(())


def undo(model, original, batch):
    return torch.zeros(())


def damaged(weight, noise, alpha, beta):
    """A student's weights, entry by entry."""
    return torch.tensor([(1 - alpha) * w + alpha * beta * n for w, n in zip(weight.flatten(), noise, strict=True)])


def l1_sparsity(model, original, batch, sparsity=1e-6):
    return sparsity * sum(abs(value) for p in model.parameters() for value in p.flatten())


# -- retain terms ------------------------------------------------------------------------------------------------------


def cross_entropy(model, *rest):
    """Of a batch's retain part, or of one part alone."""
    part = rest[-1].get("retain", rest[-1])
    return -over_tokens(part, lambda row: row_tokens(model, part, row))


def kl_to_reference(model, original, batch):
    part = batch["retain"]

    def of_row(row):
        values = []
        pairs = zip(row_logits(model, part, row), row_logits(original, part, row), strict=True)
        for (logits, _), (teacher, _) in pairs:
            p, log_q = teacher.detach().softmax(-1), logits.log_softmax(-1)
            values.append(sum(a * (a.log() - b) for a, b in zip(p, log_q, strict=True)))
        return values

    return over_tokens(part, of_row)


def embedding_difference(model, original, batch, layer=1):
    part = batch["retain"]
    squares = []
    for row in range(len(part["labels"])):
        now, before = after_block(model, part, row, layer), after_block(original, part, row, layer).detach()
        squares += [((a - b) ** 2).sum() / len(a) for a, b in zip(now, before, strict=True)]
    return sum(squares) / len(squares)


def soft_collapse(gradient: torch.Tensor, rank: int, power: float = 1.0) -> torch.Tensor:
    """From the right, then from the left, component by component."""
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    shrink = 1 - (s[rank - 1] / s[:rank]) ** power
    for i in range(rank):
        gradient = gradient - shrink[i] * (gradient @ vh[i])[:, None] * vh[i][None]
    for i in range(rank):
        gradient = gradient - shrink[i] * u[:, i][:, None] * (u[:, i] @ gradient)[None]
    return gradient


# -- one shot ----------------------------------------------------------------------------------------------------------


def inverse_fisher_product(gradients: torch.Tensor, v: torch.Tensor, damping: float) -> torch.Tensor:
    """(λI + (1/N) Σ g gᵀ)⁻¹ v by a dense solve; gradients of shape (N, parameters)."""
    fisher = damping * torch.eye(len(v), dtype=v.dtype) + gradients.T @ gradients / len(gradients)
    return torch.linalg.solve(fisher, v)
