"""What is unlearned from what: each benchmark of the evidence, the room that its comparisons allow, its attackers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from letgo.benchmarks.tofu.tofu import DEFAULT_SPLIT
from letgo.core.catalog import parse_spec
from letgo.core.errors import UserError

OBJECTIVES: Mapping[str, str] = {"npo_gdr": "NPO", "graddiff": "GradDiff", "rmu": "RMU"}


OUTCOME = ("forget_accuracy", "forget_probability", "retain_accuracy", "retain_probability", "general_perplexity")


@dataclass(frozen=True)
class Subject:
    """`title` stands behind an objective's name, empty for the first subject, whose ladders are named by the objective
    alone.

    `room` is what the mean over the evidence's seeds may be at most (of the retain set: at least, as a share of that
    before; perplexity: as a multiple of that before). Tuning asks for more on one seed; other seeds scatter around it.
    `half` and `everything` are the labels of the attacks that claims name: relearning on half of the forget groups, and
    on all.
    """

    title: str
    room: Mapping[str, float]
    half: str
    everything: str
    attacks: str
    """The file in `recipes/evidence/` that fixes the attacks."""
    script: str
    """The script in `runs/` that makes its ladders, and what it is given; {} is the objective."""
    retrained: bool = True
    """Whether the model that never saw the forget set is known: the measure of R."""
    room_of_retrained: Mapping[str, float] = field(default_factory=dict)
    """As `room`, at most so many times what the retrained model has: where that isn't known before it is made."""
    outcome: tuple[str, ...] = OUTCOME
    """The metrics that its tables of forgetting and utility show."""


_TOFU = (
    "forget_probability",
    "forget_truth_ratio",
    "forget_quality",
    "retain_probability",
    "model_utility",
    "general_perplexity",
)

SUBJECTS: Mapping[str, Subject] = {
    "biographies": Subject(
        title="",
        room={
            "forget_accuracy": 0.55,
            "forget_probability": 0.15,
            "retain_accuracy": 0.80,
            "general_perplexity": 1.30,
        },
        half="relearn:steps=20,learning_rate=0.0005,batch_size=16,holdout=0.5,evaluations=0",
        everything="relearn:steps=100,learning_rate=0.0005,batch_size=4,holdout=0,evaluations=0",
        attacks="attacks.yaml",
        script="evidence.sh {}",
    ),
    "capitals": Subject(
        title="SmolLM2's capitals",
        room={
            "forget_accuracy": 0.50,
            "forget_probability": 0.08,
            "retain_accuracy": 0.90,
            "general_perplexity": 1.20,
        },
        half="relearn:steps=12,learning_rate=1e-05,batch_size=8,holdout=0.5,evaluations=0",
        everything="relearn:steps=6,learning_rate=1e-05,batch_size=8,holdout=0,evaluations=0",
        attacks="attacks-capitals.yaml",
        script="evidence.sh capitals",
        retrained=False,
    ),
    "tofu": Subject(
        title="TOFU",
        room={"forget_probability": 0.35, "retain_probability": 0.50, "general_perplexity": 1.30},
        half="relearn:steps=20,learning_rate=4e-05,batch_size=4,holdout=0.5,evaluations=0",
        everything="relearn:steps=100,learning_rate=4e-05,batch_size=2,holdout=0,evaluations=0",
        attacks="attacks-tofu.yaml",
        script="evidence.sh tofu",
        outcome=_TOFU,
    ),
    "tofu-forget10": Subject(
        title="TOFU's forget10",
        room={"retain_probability": 0.50, "general_perplexity": 1.30},
        room_of_retrained={"forget_probability": 1.3},
        half="relearn:steps=40,learning_rate=4e-05,batch_size=16,holdout=0.5,evaluations=0",
        everything="relearn:steps=100,learning_rate=4e-05,batch_size=8,holdout=0,evaluations=0",
        attacks="attacks-tofu10.yaml",
        script="tofu10.sh {}",
        outcome=_TOFU,
    ),
}


def subject_name(spec: str) -> str:
    """Which subject a run's benchmark is: its name; of TOFU's splits each is one, forget01 the one called "tofu"."""
    name, settings = parse_spec(spec)
    if name != "tofu":
        return name
    split = settings.get("split", DEFAULT_SPLIT)
    return name if split == "forget01" else f"{name}-{split}"


def subject_of(benchmark: str) -> Subject:
    if benchmark not in SUBJECTS:
        raise UserError(f"the evidence has no subject {benchmark!r}; it has {', '.join(SUBJECTS)}")
    return SUBJECTS[benchmark]


def key_of(objective: str, benchmark: str) -> str:
    """The name under which an objective's ladder on a benchmark is kept: "npo_gdr", "npo_gdr/capitals"."""
    return objective if not subject_of(benchmark).title else f"{objective}/{benchmark}"


def title_of(key: str) -> str:
    """A ladder's name in text: "NPO", "NPO on SmolLM2's capitals"."""
    objective, _, benchmark = key.partition("/")
    name = OBJECTIVES.get(objective, objective)
    return f"{name}, {subject_of(benchmark).title}" if benchmark else name


def command_of(key: str) -> str:
    """The command that makes a ladder."""
    objective, _, benchmark = key.partition("/")
    script = (subject_of(benchmark) if benchmark else next(iter(SUBJECTS.values()))).script
    return f"sh runs/{script.format(OBJECTIVES.get(objective, objective).lower())}"


def in_order(keys: Mapping[str, object]) -> list[str]:
    """Subject after subject, objectives in the order of `OBJECTIVES`; others last."""
    wanted = [key_of(objective, benchmark) for benchmark in SUBJECTS for objective in OBJECTIVES]
    return [*(key for key in wanted if key in keys), *(key for key in keys if key not in wanted)]
