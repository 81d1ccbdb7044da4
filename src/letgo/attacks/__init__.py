"""Attacks on an unlearned model: each takes the saved model and gives another one, and what it did to it.

An attack is a function `(victim, *, seed, **settings) -> Attacked` in a file of its own and one line here. It knows
nothing of the objective or the optimizer that made the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from letgo.catalog import Catalog, Record

if TYPE_CHECKING:
    from letgo.attacks.run import attack as attack

ATTACKS: Catalog[Record] = Catalog(
    "attack",
    [
        Record(
            name="quantize",
            target="letgo.attacks.quantize:quantize",
            summary="round weights to 2-8 bits, per tensor, channel or group",
            source="quantization attack on unlearning (arXiv 2410.16454)",
            faithfulness="variant",
            note="plain round-to-nearest in torch, weights kept dequantized; packed formats are other attacks",
        ),
        Record(
            name="relearn",
            target="letgo.attacks.relearn:relearn",
            summary="fine-tune on all or part of the forget set, the rest held out",
            source="relearning attack (arXiv 2406.13356); TOFU forget10 relearning",
            faithfulness="variant",
            note="whole groups are held out, and judged apart from those trained on",
        ),
    ],
)

__all__ = ["ATTACKS", "attack"]


def __getattr__(name: str) -> Any:
    if name == "attack":
        from letgo.attacks.run import attack

        return attack
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
