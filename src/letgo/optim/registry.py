"""`OPTIMIZERS`, the one list of optimizers; a new optimizer is one file and one record here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from letgo.core.catalog import Catalog, Own, Record
from letgo.core.errors import UserError, first_line
from letgo.core.values import shown

if TYPE_CHECKING:
    import torch


Grade = Literal["zeroth", "compressed", "first", "second", "smoothing", "hybrid"]
GRADES: Mapping[Grade, str] = {
    "zeroth": "zeroth order",
    "compressed": "compressed",
    "first": "first order",
    "second": "second order",
    "smoothing": "smoothing",
    "hybrid": "hybrid",
}
"""The grades in the order in which they are shown, and what they are called."""


@dataclass(frozen=True, kw_only=True)
class OptimizerRecord(Record):
    """A record of an optimizer: every record's fields, and what a step costs."""

    grade: Grade
    forwards: str = ""
    """Forward passes a step; q is `num_directions`. Empty where nobody has said."""
    backwards: str = ""
    """Backward passes a step."""
    state: str = ""
    """Memory of the state, in multiples of the parameters, without weights and gradients."""
    float16: bool = False
    """Whether it can step weights in float16: it takes no gradient and keeps no squares, which are 0 there."""
    refuses_shards: str = ""
    """Why it cannot step parameters that FSDP2 has sharded, and what can; empty where it can."""


def _described(made: Any) -> dict[str, Any]:
    """The grade of somebody's own optimizer, as far as its class tells."""
    import torch

    if not isinstance(made, type):
        return {"grade": "first"}
    if not issubclass(made, torch.optim.Optimizer):
        raise UserError("is a class, but no torch.optim.Optimizer")
    from letgo.optim.zeroth_order import ZerothOrder

    return {"grade": "zeroth" if issubclass(made, ZerothOrder) else "first"}


OPTIMIZERS: Catalog[OptimizerRecord] = Catalog(
    "optimizer",
    [
        OptimizerRecord(
            name="zo_sgd",
            aliases=("mezo",),
            target="letgo.optim.zeroth_order:ZOSGD",
            summary="gradient descent on an estimate from loss differences",
            source="MeZO, arXiv 2305.17333",
            faithfulness="variant",
            note="Rademacher noise by default (Gaussian is MeZO's), own seeds, no rounding drift of the weights",
            grade="zeroth",
            float16=True,
            forwards="2q",
            backwards="0",
            state="0 (1 with momentum)",
        ),
        OptimizerRecord(
            name="ada_zo",
            aliases=("adazo", "r_adazo"),
            target="letgo.optim.zeroth_order_adaptive:AdaZO",
            summary="adaptive zeroth order: second moment of the first moment",
            source="R-AdaZO, arXiv 2502.01014; AdaZO of arXiv 2510.00761",
            faithfulness="variant",
            note="central differences of Rademacher noise, where the public code takes forward ones along unit "
            "vectors; all parameters are perturbed together",
            grade="zeroth",
            forwards="2q",
            backwards="0",
            state="2",
        ),
        OptimizerRecord(
            name="zo_adam",
            aliases=("zoadam",),
            target="letgo.optim.zeroth_order_adaptive:ZOAdam",
            summary="Adam on the zeroth-order estimate",
            source="ZO-AdaMM, arXiv 1910.06513; MeZO's Adam variant, arXiv 2305.17333",
            faithfulness="variant",
            note="central differences; no projection and no maximum over past second moments",
            grade="zeroth",
            forwards="2q",
            backwards="0",
            state="2",
        ),
        OptimizerRecord(
            name="zo_sign_sgd",
            aliases=("zo_signsgd",),
            target="letgo.optim.zeroth_order_adaptive:ZOSignSGD",
            summary="sign of the zeroth-order estimate",
            source="signSGD via Zeroth-Order Oracle, ICLR 2019",
            faithfulness="variant",
            note="central differences",
            grade="zeroth",
            float16=True,
            forwards="2q",
            backwards="0",
            state="0",
        ),
        OptimizerRecord(
            name="zo_muon",
            aliases=("zomuon",),
            target="letgo.optim.zeroth_order_subspace:ZOMuon",
            summary="subspace estimate with its singular values set to 1",
            source="ZO-Muon, arXiv 2602.17155",
            faithfulness="variant",
            note="exact matrix sign; mu scaled to the root mean square; vectors move by their normalised estimate; the "
            "momentum, off by default, is ours",
            grade="zeroth",
            float16=True,
            forwards="q + 1",
            backwards="0",
            state="0 (rank / columns for the projections, rank / rows with momentum)",
        ),
        OptimizerRecord(
            name="zo_subspace",
            aliases=("lozo",),
            target="letgo.optim.zeroth_order_subspace:ZOSubspace",
            summary="descent in a random subspace that stays for a while, with momentum inside it",
            source="LOZO-M, arXiv 2410.07698",
            faithfulness="variant",
            note="an orthonormal basis on the rows' side, where the source has a Gaussian one on the columns'; the "
            "momentum and the estimate's scale are zo_sgd's",
            grade="zeroth",
            float16=True,
            forwards="2q",
            backwards="0",
            state="rank / rows (0 without momentum), and rank / columns for the projections",
        ),
        OptimizerRecord(
            name="zo_svrg",
            aliases=("mezo_svrg",),
            target="letgo.optim.zeroth_order_svrg:ZOSVRG",
            summary="estimates that correct a better one, made from many directions every few steps",
            source="MeZO-SVRG, arXiv 2404.08080",
            faithfulness="variant",
            note="the better one is made of many directions on a step's own rows, where the source takes one direction "
            "on all rows; one rate",
            grade="zeroth",
            float16=True,
            forwards="4q, and 2 anchor_directions every period steps",
            backwards="0",
            state="2",
        ),
        OptimizerRecord(
            name="fzoo",
            target="letgo.optim.fzoo:FZOO",
            summary="one-sided evaluations with a common baseline, the step divided by their losses' spread",
            source="FZOO, arXiv 2506.09034",
            faithfulness="variant",
            note="its update is known, its rates and its own batched forward pass are not; noise as in zo_sgd",
            grade="zeroth",
            forwards="q + 1",
            backwards="0",
            state="0",
        ),
        OptimizerRecord(
            name="auto_rate",
            aliases=("rate_finder",),
            target="letgo.optim.auto_rate:AutoRate",
            summary="a zeroth-order optimizer at the largest rate whose steps lower the loss as their slope promises",
            source="letgo, after Armijo's rule (1966)",
            faithfulness="ours",
            grade="zeroth",
            forwards="those of the base, and some hundred before the first step",
            backwards="0",
            state="that of the base (+ 1 during the search)",
        ),
        OptimizerRecord(
            name="random_walk",
            aliases=("placebo",),
            target="letgo.optim.random_walk:RandomWalk",
            summary="a zeroth-order optimizer that is told nothing of the loss: a placebo",
            source="letgo: the control of zeroth-order phases",
            faithfulness="ours",
            grade="zeroth",
            forwards="1, to report the loss",
            backwards="0",
            state="that of the base",
        ),
        OptimizerRecord(
            name="sign_sgd",
            aliases=("signsgd",),
            target="letgo.optim.compressed:SignSGD",
            summary="sign of the gradient",
            source="signSGD, arXiv 1802.04434",
            faithfulness="faithful",
            grade="compressed",
            forwards="1",
            backwards="1",
            state="0",
        ),
        OptimizerRecord(
            name="sign_adam",
            aliases=("signadam", "signum"),
            target="letgo.optim.compressed:SignAdam",
            summary="sign of the momentum (1-bit Adam, which is Signum)",
            source="signAdam of arXiv 2510.00761; Signum, arXiv 1802.04434",
            faithfulness="faithful",
            grade="compressed",
            forwards="1",
            backwards="1",
            state="1",
        ),
        OptimizerRecord(
            name="compressed",
            target="letgo.optim.quantized:Compressed",
            summary="any first-order optimizer, its direction quantized to N bits",
            source="theta - lr Q(m; N) of arXiv 2510.00761",
            faithfulness="variant",
            note="the paper's quantizer for N > 1 is not known; ours is symmetric absmax per block of 256",
            grade="compressed",
            forwards="1",
            backwards="1",
            state="that of the base + 1 (+ 1 with error feedback)",
        ),
        OptimizerRecord(
            name="adamw_8bit",
            aliases=("adam_8bit", "adamw8bit"),
            target="bitsandbytes.optim:AdamW8bit",
            summary="AdamW with its moments kept in 8 bits",
            source="Dettmers et al., 8-bit Optimizers, arXiv 2110.02861",
            faithfulness="library",
            note="its first step makes parameters contiguous: a resumed run has the same bits if they were so before",
            extra="bitsandbytes",
            grade="compressed",
            forwards="1",
            backwards="1",
            state="0.5 (float32 weights), 1 (bf16)",
            refuses_shards="bitsandbytes works on a tensor's memory and knows no shards: take 'adamw' or 'compressed', "
            "or replicas (DDP)",
        ),
        OptimizerRecord(
            name="sgd",
            target="torch.optim:SGD",
            summary="gradient descent",
            source="torch.optim.SGD",
            faithfulness="library",
            grade="first",
            forwards="1",
            backwards="1",
            state="0 (1 with momentum)",
        ),
        OptimizerRecord(
            name="adamw",
            target="torch.optim:AdamW",
            summary="Adam with decoupled weight decay",
            source="torch.optim.AdamW",
            faithfulness="library",
            grade="first",
            forwards="1",
            backwards="1",
            state="2",
        ),
        OptimizerRecord(
            name="muon",
            target="letgo.optim.muon:Muon",
            summary="momentum, orthogonalised, for hidden matrices; AdamW for everything else",
            source="Muon, Jordan et al. 2024, as torch.optim.Muon has it; torch.optim.AdamW",
            faithfulness="faithful",
            note="the two rates' relation is ours: by default both move a weight equally far in the first steps",
            grade="first",
            forwards="1",
            backwards="1",
            state="1 (2 of embeddings, heads and vectors)",
        ),
        OptimizerRecord(
            name="sift",
            target="letgo.optim.sift:Sift",
            summary="the forget and the retain momentum's leading directions, made orthogonal to one another",
            source="SIFT, arXiv 2604.04231: its use of Muon",
            faithfulness="variant",
            note="exact factors, where the source has Newton-Schulz; AdamW for all but hidden matrices; without the "
            "choice of layers, which the paper has and its code has not",
            grade="first",
            forwards="1 of each term",
            backwards="1 of each term",
            state="2",
        ),
        OptimizerRecord(
            name="dual_optim",
            aliases=("dualoptim",),
            target="letgo.optim.dual:DualOptim",
            summary="AdamW with moments of their own for the forget and the retain term, which take turns",
            source="DualOptim, arXiv 2504.15827",
            faithfulness="faithful",
            grade="first",
            forwards="1, of one term",
            backwards="1, of one term",
            state="4",
        ),
        OptimizerRecord(
            name="dual_optim_plus",
            aliases=("dualoptim_plus", "dualoptim+"),
            target="letgo.optim.dual:DualOptimPlus",
            summary="DualOptim, with moments that both terms share beneath each term's own",
            source="DualOptim+, arXiv 2605.21539",
            faithfulness="faithful",
            note="after its published code, without its 8-bit states and its setting alpha, which does nothing",
            grade="first",
            forwards="1, of one term",
            backwards="1, of one term",
            state="6",
        ),
        OptimizerRecord(
            name="sure",
            target="letgo.optim.sure:Sure",
            summary="any first-order optimizer, on the weights alone that the forget term leans on most",
            source="SURE, arXiv 2410.16454; with unit=weight the mask of SalUn, arXiv 2310.12508",
            faithfulness="variant",
            note="masks the update, where the public code masks gradients in a method that is never called; by default "
            "one mask, from the first step's forget rows",
            grade="first",
            forwards="those of the base (+ 1 of the forget term for a mask)",
            backwards="those of the base (+ 1 of the forget term for a mask)",
            state="that of the base (+ 1 while it steps; + a byte for each unit)",
            refuses_shards="it compares the gradients of all parameters with one another: take replicas (DDP)",
        ),
        OptimizerRecord(
            name="sophia",
            aliases=("soul",),
            target="letgo.optim.second_order:Sophia",
            summary="momentum over a running Hessian diagonal, clipped",
            source="Sophia, arXiv 2305.14342; SOUL, arXiv 2404.18239",
            faithfulness="faithful",
            note="hessian: empirical_fisher (SOUL's code, the default), hutchinson or gnb",
            grade="second",
            forwards="1 (gnb: 1 more every k steps)",
            backwards="1 (gnb: 1 more every k steps; hutchinson: a double backward every k steps)",
            state="2",
        ),
        OptimizerRecord(
            name="sam",
            target="letgo.optim.smoothing:SAM",
            summary="sharpness-aware: the gradient at the worst point nearby",
            source="SAM, arXiv 2010.01412; on the forget term, arXiv 2502.05374",
            faithfulness="faithful",
            grade="smoothing",
            forwards="2 (on='forget': 2 of the forget term, 1 of the rest)",
            backwards="2 (on='forget': 2 of the forget term, 1 of the rest)",
            state="that of the base (+ 2 while it steps)",
        ),
        OptimizerRecord(
            name="randomized_smoothing",
            aliases=("rs", "fo_rs"),
            target="letgo.optim.smoothing:RandomizedSmoothing",
            summary="mean gradient over a few draws of noise on the weights",
            source="FO-RS of arXiv 2510.00761; on the forget term, arXiv 2502.05374",
            faithfulness="faithful",
            grade="smoothing",
            forwards="n draws (on='forget': + 1 of the rest)",
            backwards="n draws (on='forget': + 1 of the rest)",
            state="that of the base (+ 3 while it steps)",
        ),
        OptimizerRecord(
            name="straight_through",
            aliases=("durableun",),
            target="letgo.optim.straight_through:StraightThrough",
            summary="the gradient at the rounded weights too, straight through the rounding",
            source="DurableUn, arXiv 2605.02196",
            faithfulness="variant",
            note="rounds every matrix, where the source's code rounds adapters alone; without a warm-up by default",
            grade="smoothing",
            forwards="2 (on='forget': 2 of the forget term, 1 of the rest)",
            backwards="2 (on='forget': 2 of the forget term, 1 of the rest)",
            state="that of the base (+ 2 while it steps)",
        ),
        OptimizerRecord(
            name="weight_averaging",
            aliases=("swa", "wa"),
            target="letgo.optim.averaging:WeightAveraging",
            summary="any optimizer, with the mean or EMA of its weights at the end",
            source="SWA, arXiv 1803.05407; in unlearning, arXiv 2502.05374",
            faithfulness="faithful",
            grade="smoothing",
            forwards="those of the base",
            backwards="those of the base",
            state="that of the base + 1",
        ),
        OptimizerRecord(
            name="bin_floor",
            aliases=("mansu_floor",),
            target="letgo.optim.bin_floor:BinFloor",
            summary="any optimizer; at the end its largest updates reach the next bin of a grid, the others are undone",
            source="the floor of MANSU, arXiv 2605.15138",
            faithfulness="variant",
            note="the paper's formula and thresholds are not known, and there is no code: the floor and the share are "
            "assumed; without its circuit and its null space",
            grade="smoothing",
            forwards="those of the base",
            backwards="those of the base",
            state="that of the base + 1",
        ),
        OptimizerRecord(
            name="fozo",
            aliases=("hybrid",),
            target="letgo.optim.hybrid:FOZO",
            summary="first-order steps, then zeroth-order steps, repeated",
            source="the hybrid of arXiv 2510.00761",
            faithfulness="variant",
            note="settings the paper does not state are ours; moments are kept across switches",
            grade="hybrid",
            forwards="1 or 2q",
            backwards="1 or 0",
            state="4 (AdamW and AdaZO)",
        ),
    ],
    Own("letgo.optimizers", OptimizerRecord, _described),
)


def list_optimizers(pattern: str = "*", with_description: bool = False) -> list[str] | list[tuple[str, str]]:
    """Names of the optimizers that match a shell pattern, or pairs of name and one-line description."""
    names = OPTIMIZERS.names(pattern)
    return [(name, OPTIMIZERS.record(name).summary) for name in names] if with_description else names


def create_optimizer(name: str, params: Iterable[Any], **settings: Any) -> torch.optim.Optimizer:
    """Make the optimizer of a name or an alias, or of a path to one's own or another library's
    ("torch.optim.Adagrad").

    Raises:
        UserError: the name or a setting is unknown (with the nearest ones), or a value is refused.
    """
    record = OPTIMIZERS.record(name)
    OPTIMIZERS.check_settings(name, settings)
    # What others raise is of any kind.
    expected = Exception if record.faithfulness == "yours" else (TypeError, ValueError)
    try:
        optimizer: torch.optim.Optimizer = OPTIMIZERS.load(name)(params, **settings)
    except expected as error:
        raise UserError(f"optimizer {record.name!r}: {first_line(error)}") from error
    import torch

    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer {record.name!r} makes {shown(optimizer)}, which is no torch.optim.Optimizer")
    refuse_shards(name, optimizer)
    return optimizer


def refuse_shards(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer that does not know shards say so when it is to step some, where it is another library's.

    Not when it is made: accelerate shards the parameters of optimizers that exist.
    """
    record = OPTIMIZERS.record(name)
    if record.refuses_shards:
        optimizer.register_step_pre_hook(_ShardsRefused(f"optimizer {record.name!r}: {record.refuses_shards}"))


@dataclass(frozen=True)
class _ShardsRefused:
    """A hook before a step; a class, so that optimizers can be copied."""

    why: str

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        from letgo.optim.engine.shards import has_shards

        if has_shards(p for group in optimizer.param_groups for p in group["params"]):
            raise UserError(f"the parameters are sharded over the ranks (FSDP2). {self.why}")
