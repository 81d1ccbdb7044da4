"""Plain prose for benchmarks and attacks that have none: one half to train on, the other for perplexity."""

from __future__ import annotations

from pathlib import Path

from letgo.benchmarks.engine.items import Text

ASSETS = Path(__file__).parents[1] / "assets"
PARAGRAPHS_TRAINED = 32


def read_paragraphs() -> list[str]:
    """The project's own paragraphs of plain prose."""
    text = (ASSETS / "general.txt").read_text(encoding="utf-8")
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


def general_paragraphs(*, held_out: bool) -> list[Text]:
    """General prose as texts: the held-out half, for perplexity, or the half that may be trained on."""
    texts = [Text("general", f"general-{i}", f"general-{i}", text) for i, text in enumerate(read_paragraphs())]
    return texts[PARAGRAPHS_TRAINED:] if held_out else texts[:PARAGRAPHS_TRAINED]
