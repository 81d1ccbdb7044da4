"""Attacks on an unlearned model: each takes the saved model and leaves another one, or asks it otherwise.

An attack is a function `(victim, *, seed, **settings) -> Attacked` in a file and one line here. `victim` is the saved
model; the seed changes nothing where the record is not `random`. It checks its settings and its data before it asks
`victim` for a model or a tokenizer: before a run is trained, each of its attacks is begun on a victim without either
(`letgo.attacks.engine.spec.check_attacks`), so that mistakes are found at once. The function knows nothing of the
objective or the optimizer that made the model, and nothing of the judge (`letgo.attacks.engine.judge`). One of your
own is named by its path; `letgo.described(means=…)` says of it what a line here says of letgo's.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

from letgo.core.catalog import Catalog, Own, Record
from letgo.core.errors import UserError

Means = Literal["weights", "data", "prompts", "scores"]
Family = Literal["quantization", "relearning", "other"]


@dataclass(frozen=True, kw_only=True)
class AttackRecord(Record):
    """A record with what the attacker needs, and how the attack is run.

    `means`: changes the `weights` without data, fine-tunes on `data`, asks by `prompts`, or only takes `scores`.
    `family`: under which of the scores Q and R it counts. `space`: the settings that a search goes over, each a tuple
    of choices, or ("log", low, high). `random`: whether the seed changes anything; `seeds`: how many by default.
    `served`: the last level of a server (`letgo.scoring.server.probe.LEVELS`) at which it can be made; 0 for what needs
    the weights. `of_pair`: what it does to a model that it is compared with depends on the unlearned one too.
    """

    means: Means = "weights"
    family: Family = "other"
    space: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    random: bool = True
    seeds: int = 1
    served: Literal[0, 1, 2, 3] = 0
    of_pair: bool = False


def _attack(target: str, **fields: Any) -> AttackRecord:
    """The record of an attack that is called like its function."""
    return AttackRecord(name=target.partition(":")[2], target=f"letgo.attacks.{target}", **fields)


def _described(attack: Any) -> dict[str, Any]:
    """Of somebody's own attack: that it can be called as attacks are."""
    names = list(inspect.signature(attack).parameters)
    if names[:1] != ["victim"] or "seed" not in names:
        raise UserError(f"must take (victim, *, seed, …), as every attack does; it takes ({', '.join(names)})")
    return {}


ATTACKS: Catalog[AttackRecord] = Catalog(
    "attack",
    [
        _attack(
            "quantize:quantize",
            summary="round weights to 2-8 bits, per tensor, channel or group",
            source="quantization attack on unlearning (arXiv 2410.16454)",
            faithfulness="variant",
            note="plain round-to-nearest in torch, weights kept dequantized; packed formats are other attacks",
            means="weights",
            family="quantization",
            random=False,
            space={
                "bits": (8, 6, 5, 4, 3, 2),
                "granularity": ("group", "channel", "tensor"),
                "symmetric": (True, False),
            },
        ),
        _attack(
            "quantize_served:quantize_gguf",
            aliases=("gguf",),
            summary="GGUF's block types and llama.cpp's mixes: q8_0, q4_k_m, q3_k_m, q2_k, iq4_xs, mxfp4, …",
            source="llama.cpp; docs/formats.md",
            faithfulness="library",
            note="encoded by libgguf; types by tensor as llama.cpp's quantizer chooses them",
            extra="gguf",
            means="weights",
            family="quantization",
            space={"type": ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "iq4_xs", "q3_k_m", "q2_k")},
        ),
        _attack(
            "quantize_served:quantize_packed",
            aliases=("quantize_fp8",),
            summary="FP8, INT4 by group or NF4, as packed safetensors hold them",
            source="FP8 (arXiv 2209.05433), NF4 (arXiv 2305.14314); docs/formats.md",
            faithfulness="ours",
            means="weights",
            family="quantization",
            space={"format": ("fp8", "int4", "nf4")},
        ),
        _attack(
            "quantize_served:requantize",
            aliases=("own",),
            summary="back to the quantized format in which the original came, on its own scales",
            source="letgo; docs/formats.md",
            faithfulness="ours",
            means="weights",
            family="quantization",
        ),
        _attack(
            "quantize_served:exported",
            summary="what the run's export: wrote, as it will be served",
            source="letgo; docs/formats.md",
            faithfulness="ours",
            means="weights",
            family="quantization",
            random=False,
        ),
        _attack(
            "quantize_with_libraries:quantize_bnb",
            aliases=("bitsandbytes", "bnb"),
            summary="NF4, FP4 or int8 by bitsandbytes",
            source="arXiv 2305.14314, arXiv 2208.07339; as an attack arXiv 2410.16454",
            faithfulness="library",
            note="dequantized at once, so that its silent repacking on AVX512-BF16 CPUs can't spoil them",
            extra="bitsandbytes",
            means="weights",
            family="quantization",
            random=False,
            space={"format": ("nf4", "fp4", "int8")},
        ),
        _attack(
            "quantize_with_libraries:quantize_torchao",
            aliases=("torchao",),
            summary="integers of 2-8 bits per group or channel by torchao",
            source="torchao, IntxWeightOnlyConfig",
            faithfulness="library",
            extra="torchao",
            means="weights",
            family="quantization",
            random=False,
            space={"bits": (8, 6, 5, 4, 3, 2), "group_size": (32, 64, 0)},
        ),
        _attack(
            "quantize_with_libraries:quantize_autoround",
            aliases=("autoround",),
            summary="calibrated rounding to 2-8 bits by auto-round",
            source="SignRound (arXiv 2309.05516)",
            faithfulness="library",
            note="calibrated on retain rows and general text",
            extra="autoround",
            means="data",
            family="quantization",
        ),
        _attack(
            "quantize_with_libraries:external",
            summary="a model made outside of the saved one (GPTQ, AWQ), judged like an attack",
            source="letgo; the recipe is in docs/attacks.md",
            faithfulness="ours",
            means="weights",
            random=False,
        ),
        _attack(
            "relearn:relearn",
            summary="fine-tune on forget, retain or benign data; full or LoRA; forget groups held out",
            source="relearning attack (arXiv 2406.13356); TOFU and WMDP relearning",
            faithfulness="variant",
            note="whole groups are held out, and judged apart from those trained on",
            means="data",
            family="relearning",
            seeds=3,
            space={
                "learning_rate": ("log", 1e-6, 3e-3),
                "steps": (10, 20, 50, 100),
                "optimizer": ("adamw", "sgd", "sign_adam"),
                "batch_size": (4, 16),
            },
        ),
        _attack(
            "distill:distill",
            summary="a damaged copy of the model, or another model, taught the model's outputs over benign text",
            source="letgo; the student of UNDO (arXiv 2506.06278), as an attack",
            faithfulness="ours",
            note="UNDO noises a student to make it forget; here what survives that, or is taught, is held against it",
            means="data",
        ),
        _attack(
            "weights:prune",
            summary="set the smallest weights to zero",
            source="magnitude pruning (arXiv 1506.02626)",
            faithfulness="variant",
            note="one shot, without retraining",
            means="weights",
            random=False,
            space={"sparsity": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "scope": ("layer", "model")},
        ),
        _attack(
            "weights:noise",
            summary="Gaussian noise on every weight",
            source="letgo; the perturbation of randomized smoothing (arXiv 1902.02918), on weights",
            faithfulness="ours",
            means="weights",
            seeds=3,
            space={"sigma": ("log", 1e-5, 1e-1)},
        ),
        _attack(
            "weights:interpolate",
            summary="part of the way back to the original's weights",
            source="linear mode connectivity (arXiv 1912.05671), as a test",
            faithfulness="ours",
            note="needs the original: it tells how far off the forgetting is",
            means="weights",
            random=False,
            space={"share": (0.1, 0.2, 0.3, 0.4, 0.5)},
        ),
        _attack(
            "weights:merge",
            summary="another model's weights merged in: linearly, by TIES-Merging, by DARE, or as the mean of the two",
            source="task arithmetic (arXiv 2212.04089); model soups (arXiv 2203.05482); TIES-Merging (arXiv "
            "2306.01708); DARE (arXiv 2311.03099)",
            faithfulness="variant",
            note="one partner, one weight for all parameters",
            means="weights",
            space={"weight": (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)},
        ),
        _attack(
            "residual:ablate_direction",
            summary="the direction along which unlearning pushed the hidden states, taken off the weights",
            source="RMU's junk direction (github.com/vietfood/lazy-unlearner); refusal ablation (arXiv 2406.11717)",
            faithfulness="variant",
            note="one direction off all that is written, chosen by its size and not by a search; not by hooks",
            means="data",
            of_pair=True,
        ),
        _attack(
            "perturb_latent:perturb_latent",
            summary="one vector added inside the model, trained on some questions and judged on others",
            source="latent adversarial training (arXiv 2407.15549), its inner loop",
            faithfulness="variant",
            note="one vector for all tokens and rows; refused without a retrained model or controls to compare with",
            means="data",
        ),
        _attack(
            "perturb_embedding:perturb_embedding",
            aliases=("soft_prompt",),
            summary="a soft prompt: vectors in the place of words, trained on some questions and judged on others",
            source="embedding space attacks (arXiv 2402.09063); what they make any model say (arXiv 2502.15836)",
            faithfulness="variant",
            note="one prompt for all rows; refused without a retrained model or controls to compare with",
            means="prompts",
        ),
        _attack(
            "residual:logit_lens",
            summary="answers read from an earlier layer, through the final norm and the output layer",
            source="logit lens (nostalgebraist, 2020)",
            faithfulness="variant",
            note="one layer for the whole answer; the blocks after it add nothing",
            means="weights",
            random=False,
        ),
        _attack(
            "residual:skip_layers",
            summary="some blocks left out",
            source="letgo; what pruning of whole layers leaves (arXiv 2403.17887)",
            faithfulness="ours",
            means="weights",
            random=False,
        ),
        _attack(
            "jailbreak:in_context",
            aliases=("icl", "prefix"),
            summary="questions and answers of the retain (or other forget) set before each question",
            source="SOUL (arXiv 2404.18239), jailbreak by a retain pair",
            faithfulness="faithful",
            note="with shots=1 and data=retain, as SOUL has it",
            served=3,
            means="prompts",
            seeds=3,
        ),
        _attack(
            "jailbreak:prefill",
            summary="the answer begun for the model",
            source="prefilling attacks (arXiv 2406.05946)",
            faithfulness="variant",
            note="beginnings of our own, or the first words of the answer itself",
            served=2,
            means="prompts",
            random=False,
        ),
        _attack(
            "jailbreak:paraphrase",
            summary="questions in other words: the data's own paraphrases, or templates",
            source="TOFU's paraphrased questions (arXiv 2401.06121)",
            faithfulness="variant",
            note="templates of our own where the data have none",
            served=3,
            means="prompts",
            random=False,
        ),
        _attack(
            "jailbreak:translate",
            summary="questions in other languages, from a file of translations",
            source="TOFU in other languages (arXiv 2601.06675)",
            faithfulness="variant",
            note="the translations are the user's; letgo has none",
            served=3,
            means="prompts",
            random=False,
        ),
        _attack(
            "jailbreak:instruct",
            summary="instructions around the question: role, persuasion, quiz",
            source="seen and unseen instruction templates as in SOUL (arXiv 2404.18239)",
            faithfulness="variant",
            note="templates of our own",
            served=3,
            means="prompts",
            random=False,
        ),
        _attack(
            "multi_turn:multi_turn",
            summary="an objection to the model's own answer, and the question again",
            source="self-correction before the question (arXiv 2603.00823)",
            faithfulness="variant",
            note="an objection of our own, after right answers too",
            served=3,
            means="prompts",
            random=False,
        ),
        _attack(
            "suffix:suffix",
            aliases=("gcg",),
            summary="words searched by gradient that make forgotten answers likelier, on questions held out",
            source="GCG (arXiv 2307.15043), universal suffix",
            faithfulness="variant",
            note="our own small search: the library for it pins an old transformers and seeds globally",
            means="prompts",
        ),
        _attack(
            "sample:sample",
            aliases=("leak",),
            summary="many answers drawn, the best counts (leak@k)",
            source="leak@k (arXiv 2511.04934)",
            faithfulness="variant",
            note="ROUGE-L recall as the leak, above that of wrong answers, which many draws hit by chance",
            served=3,
            means="scores",
        ),
        _attack(
            "membership:membership",
            aliases=("mia",),
            summary="membership inference: does a score separate forget texts from texts never seen?",
            source="MUSE (arXiv 2407.06460), PrivLeak; each score in `letgo list metrics`",
            faithfulness="variant",
            note="all scores at once; an over-unlearned model, whose forget texts stand out, leaks too",
            means="scores",
            random=False,
        ),
    ],
    Own("letgo.attacks", AttackRecord, _described),
    note='"ATTACK then ATTACK" is a chain: each is made on the model that the one before it left',
)

__all__ = ["ATTACKS", "AttackRecord"]
