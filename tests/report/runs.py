"""Synthetic runs, built through the real schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from letgo.core.files import write_json_lines
from letgo.metrics.judgement import with_attacks
from letgo.runs.results import (
    CONFIG_FILE,
    HISTORY_FILE,
    ON_TRAINED_ROWS,
    SAMPLES_FILE,
    TRAINED_ROWS,
    AttackResult,
    Judgement,
    Metric,
    Result,
    Share,
    Subjects,
)
from letgo.runs.results import write_result as write

INJECTED = "<script>alert(1)</script></style><img src=x onerror=alert(2)> {{ 7*7 }} \x1b[31mred [bold]x[/bold]"


def metric(value: float, low: float | None = None, high: float | None = None, n: int = 80) -> Metric:
    return Metric(value=value, n=n, ci95=(value * 0.8 if low is None else low, value * 1.1 if high is None else high))


def metrics(accuracy: float, probability: float, retain: float, perplexity: float, n: int = 80) -> dict[str, Metric]:
    def near(value: float, half: float) -> Metric:
        return metric(value, max(value - half, 0.0), min(value + half, 1.0), n)

    return {
        "forget_accuracy": near(accuracy, 0.09),
        "forget_probability": metric(probability, n=n),
        "forget_rouge": near(accuracy * 0.9, 0.1),
        "retain_accuracy": near(retain, 0.05),
        "retain_probability": metric(0.3, n=n),
        "general_perplexity": metric(perplexity, perplexity * 0.85, perplexity * 1.2, 24),
        "general_degenerate": metric(0.02, 0.0, 0.05, 24),
    }


BEFORE = metrics(1.0, 0.32, 0.95, 14.2)
AFTER = metrics(0.5, 0.017, 0.9, 15.1)


def share(
    original: float, unlearned: float, floor: float = 0.25, metric: str = "forget_accuracy", **changes: Any
) -> Share:
    """A share with an interval of a tenth on either side, over 20 groups and above chance."""
    value = (original - unlearned) / (original - floor)
    values = {"share": value, "low": value - 0.1, "high": value + 0.1, "bound": value - 0.08, "known": True}
    places = {"original": original, "unlearned": unlearned, "floor": floor, "floor_of": "chance", "groups": 20}
    return Share(metric=metric, **(values | places | changes))


def judgement(word: str = "forgotten", worst: Sequence[str] = (), **changes: Any) -> Judgement:
    people = Subjects(of=20, before=20, after=[], worst=list(worst), bound=0.14)
    values = {"target": 0.75, "shares": [share(1.0, 0.3)], "subjects": people, "why": "forget accuracy went 93 %"}
    return Judgement(word=word, **(values | changes))


def quantize(**changes: Any) -> AttackResult:
    values: dict[str, Any] = {
        "name": "quantize",
        "settings": {"bits": 4, "granularity": "group", "group_size": 64},
        "seeds": [0],
        "metrics": metrics(0.55, 0.021, 0.89, 16.3),
        "kept": 0.9,
        "kept_ci95": (0.8, 1.0),
        "bound": 0.82,
        "shares": [share(0.95, 0.32)],
        "why": "at least 82 % is kept",
        "survived": True,
        "did": {"displacement": 0.0123, "bits": 4},
        "seconds": 12.5,
    }
    return AttackResult(**(values | changes))


def relearn(**changes: Any) -> AttackResult:
    """Judged on groups that the attacker did not train on."""
    held_out = metrics(0.85, 0.14, 0.91, 14.9, n=40)
    values: dict[str, Any] = {
        "name": "relearn",
        "settings": {"groups": 10, "steps": 60, "learning_rate": 2e-05},
        "seeds": [0, 1, 2],
        "metrics": held_out | {"seen_accuracy": metric(0.97, 0.9, 1.0, 40)},
        "kept": 0.31,
        "kept_ci95": (0.21, 0.41),
        "bound": 0.23,
        "shares": [share(1.0, 0.7675)],
        "why": "but only 23 % is kept",
        "survived": False,
        "baseline": {"before": metrics(1.0, 0.33, 0.95, 14.2, n=40), "after": metrics(0.52, 0.018, 0.9, 15.1, n=40)},
        "curve": [
            {"step": s, "forget_accuracy": 0.52 + s * 0.0055, "seen_accuracy": 0.5 + s / 130} for s in range(0, 61, 10)
        ],
        "seconds": 45.0,
    }
    return AttackResult(**(values | changes))


def scored_on(on: str) -> dict[str, Any]:
    """Changes of `result`: its config, with what the record says of the words it was asked in."""
    notes = [ON_TRAINED_ROWS] if on == TRAINED_ROWS else []
    return {"config": result().config | {"scored": {"benchmark": "rows", "on": on}}, "notes": notes}


def result(**changes: Any) -> Result:
    values: dict[str, Any] = {
        "run_id": "capitals-npo-fozo-0",
        "created": "2026-11-21T11:20:00+00:00",
        "letgo": "0.1.0",
        "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
        "git": "65b298e",
        "seed": 0,
        "config": {
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "forget": "capitals:forget",
            "retain": "capitals:retain",
            "objective": "npo",
            "optimizer": "fozo",
            "learning_rate": 3e-05,
            "optimizer_settings": {"fo_steps": 20, "zo_steps": 20, "mu": 0.001},
            "hub_token": "hf_very_secret",
            "max_steps": 80,
            "push_to_hub": False,
            "resume": None,
        },
        "status": "finished",
        "before": BEFORE,
        "after": AFTER,
        "headlines": {"forget_accuracy": 0.25, "forget_probability": 0.0},
        "judgement": judgement(),
        "attacks": [quantize(), relearn()],
        "seconds": {"load": 4.2, "before": 31.0, "train": 141.3, "after": 30.2, "attacks": 57.5},
        "peak_memory_bytes": {"process": 2_345_678_901},
    }
    made = Result(**(values | changes))
    return made.model_copy(update={"judgement": with_attacks(made.judgement, made.attacks)})


COUNTRIES = {"France": "Paris", "Peru": "Lima", "Japan": "Tokyo", "Kenya": "Nairobi", "Côte d’Ivoire": "Yamoussoukro"}


def samples(generated: str | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    labels = [f"attack:{quantize().label}", f"attack:{relearn().label}"]
    for stage in ("before", "after", *labels):
        for which, shift in (("forget", 0.3 if stage != "after" else 0.01), ("retain", 0.35)):
            for index, (country, capital) in enumerate(COUNTRIES.items()):
                knows = which == "retain" or stage in ("before", labels[1])
                text = f"The capital of {country} is {capital}." if knows else "I’m not sure, 它是一座城市 مدينة."
                rows.append(
                    {
                        "stage": stage,
                        "seed": 0,
                        "set": which,
                        "id": f"{which}-{index}",
                        "group": country,
                        "question": f"What is the capital of {country}?",
                        "answer": capital,
                        "generated": generated if generated is not None and stage == "after" else text,
                        "scores": {"accuracy": float(knows), "probability": shift / (index + 1)},
                    }
                )
    return rows


def history() -> list[dict[str, Any]]:
    rows = []
    for step in range(1, 81):
        phase = "first_order" if (step - 1) // 20 % 2 == 0 else "zeroth_order"
        forget = 4.0 / (1 + step / 15)
        rows.append(
            {
                "step": step,
                "phase": phase,
                "loss": forget + 0.8 + 0.05 * (step % 3),
                "forget_loss": forget,
                "retain_loss": 0.8 + 0.05 * (step % 3),
                "learning_rate": 3e-5,
            }
        )
    return rows


def write_run(directory: Path, value: Result, rows: list[dict[str, Any]] | None = None, curve: bool = True) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    write(directory, value)
    (directory / CONFIG_FILE).write_text("model: x\n", encoding="utf-8")
    write_json_lines(directory / SAMPLES_FILE, samples() if rows is None else rows)
    if curve:
        write_json_lines(directory / HISTORY_FILE, history())
    return directory
