"""How much of a text's wording a generated text has: BLEU."""

from __future__ import annotations

from letgo.core.extras import need


def bleu(reference: str, generated: str) -> float:
    """sacrebleu's corpus BLEU of one generated text against one reference, 0 to 100 (as SOUL's code has it).

    Raises `UserError` where sacrebleu is not installed.
    """
    sacrebleu = need("sacrebleu", "eval", what="BLEU")
    return float(sacrebleu.corpus_bleu([generated], [[reference]]).score)
