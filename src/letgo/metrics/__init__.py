"""What is measured. `METRICS` is the one list, in the order of tables: whatever shows a metric reads its record."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from letgo.core.catalog import Catalog, Own
from letgo.core.errors import UserError
from letgo.metrics.records import CHANCE, FORGOTTEN, KNOWN, Headline, MetricRecord

_faithful = partial(MetricRecord, faithfulness="faithful")
_ours = partial(MetricRecord, source="letgo", faithfulness="ours")
_ONE_LABEL = "the score is one label's; SOUL takes the likeliest label's, whichever it is"


def _described(metric: Any) -> dict[str, Any]:
    """Of somebody's own metric: that it is a function of a sample; nobody has said what its largest value is."""
    names = list(inspect.signature(metric).parameters)
    if names[:1] != ["sample"]:
        raise UserError(f"must take (sample, …) and give a number or None; it takes ({', '.join(names)})")
    return {"ceiling": None}


METRICS: Catalog[MetricRecord] = Catalog(
    "metric",
    [
        MetricRecord(
            name="accuracy",
            target="letgo.metrics.utility:choice_accuracy",
            summary="4-way choice: the right answer is likelier per token than each wrong one",
            source="TOFU (arXiv 2401.06121), real-authors probability, as a choice",
            faithfulness="variant",
            note="the likeliest of the right and the wrong answers counts, rather than the right one's share",
            meaning="share of questions where the right answer is likelier than every wrong one (choice of four)",
            better=KNOWN,
            headline=("forget", "trained", "retain"),
            floor=CHANCE,
        ),
        _faithful(
            name="probability",
            target="letgo.metrics.memorization:probability",
            summary="exp of the mean log-probability of the answer's tokens",
            source="TOFU (arXiv 2401.06121), section 2.2.1",
            meaning="mean probability of the right answer's tokens",
            better=KNOWN,
            headline=("forget", "trained"),
        ),
        _faithful(
            name="rouge",
            target="letgo.metrics.memorization:rouge_l_recall",
            summary="ROUGE-L recall of the greedy answer, stemmed",
            source="TOFU (arXiv 2401.06121), section 2.2.1",
            meaning="ROUGE-L recall of what the model writes against the right answer",
            better=KNOWN,
        ),
        _faithful(
            name="normalised_probability",
            target="letgo.metrics.memorization:normalised_probability",
            summary="the right answer's share of the probability of all answers",
            source="TOFU (arXiv 2401.06121), real authors and world facts",
        ),
        _faithful(
            name="verbmem",
            target="letgo.metrics.memorization:rouge_l_f1",
            summary="ROUGE-L F1 of the greedy continuation of a text, not stemmed, times 100",
            source="MUSE (arXiv 2407.06460), VerbMem",
            meaning="ROUGE-L F1 × 100 of a continuation of the text against the text itself",
            better=FORGOTTEN,
            headline=("forget",),
            ceiling=100.0,
        ),
        _ours(
            name="exact_match",
            target="letgo.metrics.memorization:exact_match",
            summary="whether the greedy continuation is the true one, word for word",
            meaning="share of texts that the model goes on with word for word",
            better=KNOWN,
            headline=("forget",),
        ),
        _faithful(
            name="knowmem",
            target="letgo.metrics.memorization:rouge_l_f1",
            summary="ROUGE-L F1 of the greedy answer to a question, not stemmed, times 100",
            source="MUSE (arXiv 2407.06460), KnowMem",
            meaning="ROUGE-L F1 × 100 of the answer to a question about the texts",
            better=KNOWN,
            headline=("forget", "retain"),
            ceiling=100.0,
        ),
        _faithful(
            name="truth_ratio",
            target="letgo.metrics.memorization:truth_ratio",
            summary="likelihood of wrong answers over that of the paraphrased right one",
            source="TOFU (arXiv 2401.06121), equation 1",
            meaning="how likely wrong answers are against the right one, reworded",
            amount=False,
        ),
        MetricRecord(
            name="truth_ratio_prob_mean",
            target="letgo.metrics.memorization:truth_ratio_prob_mean",
            summary="share of the paraphrased right answer in its likelihood and that of wrong ones",
            source="open-unlearning (arXiv 2506.12618), truth_ratio with the aggregator prob_mean",
            faithfulness="faithful",
            meaning="the right answer's share, reworded, of its likelihood and that of wrong answers; 0.5 is even",
            amount=False,
        ),
        _faithful(
            name="forget_quality",
            target="letgo.metrics.memorization:forget_quality",
            summary="p-value that forget truth ratios are as the retrained model's (Kolmogorov-Smirnov)",
            source="TOFU (arXiv 2401.06121), section 2.2.2",
            meaning="p-value that truth ratios are as the retain model's; above 0.05 the two can't be told apart",
            better={"forget": "higher"},
            headline=("forget",),
            amount=False,
        ),
        _faithful(
            name="model_utility",
            target="letgo.metrics.utility:harmonic_mean",
            summary="harmonic mean of probability, ROUGE and truth ratio on three sets",
            source="TOFU (arXiv 2401.06121), section 2.2.2",
            meaning="harmonic mean of probability, ROUGE and truth ratio on retain set, real authors and world facts",
            better={"model": "higher"},
            headline=("model",),
        ),
        _faithful(
            name="extraction_strength",
            target="letgo.metrics.memorization:extraction_strength",
            summary="share of the answer that is foreseen whole from the shortest prefix",
            source="Carlini et al. (arXiv 2012.07805); as scored on TOFU in public code",
            meaning="share of the answer that the model foresees without a slip, to its end",
            better=FORGOTTEN,
        ),
        _faithful(
            name="exact_memorization",
            target="letgo.metrics.memorization:exact_memorization",
            summary="share of the answer's tokens that are the likeliest at their place",
            source="Tirumala et al. (arXiv 2205.10770)",
            meaning="share of the answer's tokens that the model foresees",
            better=FORGOTTEN,
        ),
        _faithful(
            name="perplexity",
            target="letgo.metrics.summary:perplexity_metric",
            summary="exp of the mean negative log-probability of plain text's tokens",
            source="standard",
            meaning="perplexity on general text that has nothing to do with the forget set",
            better={"general": "lower"},
            headline=("general",),
            ceiling=None,
        ),
        _ours(
            name="degenerate",
            target="letgo.metrics.utility:degeneration",
            summary="how much of a generated text is empty, repeated or not words, 0 to 1",
            meaning="how much of the generated text is empty, repeated or not words",
            better={"general": "lower"},
        ),
        _faithful(
            name="min_k",
            target="letgo.metrics.privacy:min_k",
            summary="mean of the k % least likely tokens' log-probabilities",
            source="Min-K% Prob (arXiv 2310.16789); MUSE (arXiv 2407.06460)",
        ),
        _faithful(
            name="min_k_plus_plus",
            target="letgo.metrics.privacy:min_k_plus_plus",
            summary="Min-K of log-probabilities normalised by the vocabulary's mean and deviation",
            source="Min-K%++ (arXiv 2404.02936)",
            aliases=("min_k++",),
        ),
        _faithful(
            name="loss",
            target="letgo.metrics.privacy:loss_score",
            summary="mean token log-probability, as a membership score",
            source="Yeom et al. (arXiv 1709.01604)",
        ),
        _faithful(
            name="zlib",
            target="letgo.metrics.privacy:zlib_score",
            summary="mean log-probability per zlib-compressed byte, as a membership score",
            source="Carlini et al. (arXiv 2012.07805)",
        ),
        _faithful(
            name="reference",
            target="letgo.metrics.privacy:reference_score",
            summary="mean log-probability less a reference model's, as a membership score",
            source="Carlini et al. (arXiv 2012.07805)",
        ),
        _faithful(
            name="gradient_norm",
            target="letgo.metrics.gradients:gradient_norms",
            summary="norm of the loss's gradient of each text; members have small ones",
            source="Wang et al. (arXiv 2402.17012)",
        ),
        _faithful(
            name="membership_auc",
            target="letgo.metrics.privacy:membership_auc",
            summary="chance that a member's score is above a non-member's",
            source="standard",
            meaning="how well forget texts can be told from unseen ones: 0.5 is chance, 1 certain",
            amount=False,
        ),
        _faithful(
            name="privleak",
            target="letgo.metrics.privacy:privacy_leakage",
            summary="Min-K membership AUC against the retrained model's, in per cent",
            source="MUSE (arXiv 2407.06460), section 3.1",
            meaning="per cent by which the membership AUC is off the retrained model's; 0 is best, negative: "
            "remembered",
            headline=("forget",),
            amount=False,
            ceiling=None,
        ),
        MetricRecord(
            name="toxicity",
            target="letgo.metrics.toxicity:ToxicityClassifier",
            summary="probability that a classifier gives to its label for toxicity; toxic above 0.5",
            source="SOUL (arXiv 2404.18239), detoxification",
            faithfulness="variant",
            note=_ONE_LABEL,
            meaning="mean score of the answers by the classifier",
            better=FORGOTTEN,
        ),
        MetricRecord(
            name="toxic",
            target="letgo.metrics.composite:toxicity_metrics",
            summary="share of answers whose toxicity is above 0.5",
            source="SOUL (arXiv 2404.18239), detoxification",
            faithfulness="variant",
            note=_ONE_LABEL,
            meaning="share of answers that the classifier scores above 0.5",
            better=FORGOTTEN,
        ),
        _ours(
            name="empty",
            target="letgo.benchmarks.detox:Detox",
            summary="share of answers with nothing in them",
            meaning="share of answers with nothing in them, which no classifier finds toxic",
        ),
        _ours(
            name="cut",
            target="letgo.benchmarks.detox:Detox",
            summary="share of texts that lost a part before they were scored",
            meaning="share of texts that were too long for what scores them, and lost a part",
        ),
        _faithful(
            name="bleu",
            target="letgo.metrics.bleu:bleu",
            summary="BLEU of a greedy continuation against the true one, 0 to 100",
            source="SOUL (arXiv 2404.18239), copyright; sacrebleu",
            extra="eval",
            meaning="BLEU, 0 to 100, of the continuation that the model writes against the true one",
            better=FORGOTTEN,
            ceiling=100.0,
        ),
        _ours(
            name="kept",
            target="letgo.metrics.judgement:place",
            summary="share of the forgetting that an attack leaves, 0 to 1",
            note="the attacked model between the attacked original and a model that never knew; docs/judging.md",
            meaning="share of the forgetting that an attack leaves: 1 where the attacked model is like one that never "
            "knew, 0 where it is like the attacked original",
        ),
        MetricRecord(
            name="q",
            target="letgo.metrics.robustness:kept_share",
            summary="share of the forgetting left after quantization, held to the untouched original",
            source="TOFU quantization score Q",
            faithfulness="variant",
            note="the smallest share over the headlines; damage to any model counts as forgetting kept: no verdict",
        ),
        MetricRecord(
            name="r",
            target="letgo.attacks.engine.judge:relearning_score",
            summary="what the retrained model gains by relearning over what the unlearned one gains",
            source="TOFU relearning score R",
            faithfulness="variant",
            note="the smallest over the headlines; where relearning teaches all, it measures how deep the run was",
        ),
    ],
    Own("letgo.metrics", MetricRecord, _described),
)


def record_of(key: str) -> MetricRecord | None:
    """The record of a metric as a result names it, "forget_accuracy" or "model_utility"; None of one that has none."""
    name = key if key in METRICS else key.partition("_")[2]
    return METRICS.record(name) if name in METRICS else None


def headlines(*keys: str) -> tuple[Headline, ...]:
    """Metrics as headlines of a benchmark, with the floors of their records."""
    records = {key: record_of(key) for key in keys}
    return tuple(Headline(key, 0.0 if record is None else record.floor) for key, record in records.items())
