"""One flat YAML a run: read, overridden by flags and `--set`, checked against `UnlearnConfig`, and written back.

An unknown key, a value of the wrong type or an unknown option is a `UserError` that names the file and the key.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils.logging import get_log_levels_dict

from letgo.core import processes
from letgo.core.catalog import check_settings, did_you_mean
from letgo.core.errors import UserError, first_line, located
from letgo.core.files import parse_json, read_text, settings_text
from letgo.core.values import shown
from letgo.metrics.judgement import TARGET
from letgo.models.adapters import QUANTIZATIONS
from letgo.models.formats import export_settings
from letgo.objectives import METHODS, is_one_shot
from letgo.optim import OPTIMIZERS
from letgo.training.settings import CHOICES, HIDDEN, KEEP, LOOKS, NOT_USED, TRAINERS, gathered, out_of_range, resolve

_CHOICES = CHOICES | {
    "base_quantization": QUANTIZATIONS,
    "lr_scheduler_type": tuple(each.value for each in SchedulerType),
    **dict.fromkeys(("log_level", "log_level_replica"), ("passive", *get_log_levels_dict())),
}


@dataclass
class UnlearnConfig(TrainingArguments):
    """Everything about a run, flat. The fields of `transformers.TrainingArguments` are all there, with defaults for
    unlearning: no mixed-in trackers, every step logged, checkpoints every 100 steps.

    One of `benchmark` or `forget` says what to forget.
    """

    output_dir: str | None = field(default=None, metadata={"help": "the run directory"})
    model: str = field(
        default="", metadata={"help": "a model directory, a .gguf file, a hub id, or a built-in model's name"}
    )
    dtype: str = field(default="float32", metadata={"help": "the weights' type: float32, bfloat16 or float16"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "let Python code that comes with the model and its tokenizer run"}
    )
    benchmark: str | None = field(default=None, metadata={"help": "NAME:key=value,…: sets the data and the scores"})
    forget: str | None = field(default=None, metadata={"help": "forget set: a file, or hub:ID[@REVISION]:CONFIG:SPLIT"})
    retain: str | None = field(default=None, metadata={"help": "retain set: likewise"})
    evaluate: str | None = field(
        default=None, metadata={"help": "likewise: the forget set's groups asked in other words, to be scored"}
    )
    control: str | None = field(
        default=None, metadata={"help": "likewise: facts that no model knew, which tell relearning from learning"}
    )
    template: str = field(default="auto", metadata={"help": "how questions become prompts: auto, plain or chat"})
    max_length: int | None = field(default=None, metadata={"help": "longest row in tokens; by default the context's"})
    long_rows: str = field(default="error", metadata={"help": "rows that are longer: error, cut or drop"})
    objective: str = field(default="npo_gdr", metadata={"help": "what to forget, how; see letgo list objectives"})
    objective_args: dict[str, Any] | None = field(default=None, metadata={"help": "its settings, such as beta"})
    retain_loss: str | None = field(default=None, metadata={"help": "in place of the objective's own retain term"})
    retain_weight: float | None = field(
        default=None, metadata={"help": "λ, the retain term's weight; the objective's own by default"}
    )
    retain_weight_schedule: str | None = field(
        default=None,
        metadata={
            "help": "what λ is multiplied by over the run: linear:start=0,end=1, cosine, step; or dual, which moves λ; "
            "the objective's by default"
        },
    )
    forget_weight: float = field(default=1.0, metadata={"help": "w, the forget term's weight"})
    optimizer: str = field(default="adamw", metadata={"help": "its grade decides; see letgo list optimizers"})
    optimizer_args: dict[str, Any] | None = field(default=None, metadata={"help": "its settings, such as zo_lr, mu"})
    trainable: str | None = field(
        default=None, metadata={"help": "regular expression: only parameters whose names it finds are trained"}
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "train LoRA adapters of this rank on a frozen model, not its weights"}
    )
    lora_alpha: float | None = field(default=None, metadata={"help": "α: adapters count α/rank; 2 × rank by default"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout of the adapters' input"})
    lora_targets: str | None = field(
        default=None, metadata={"help": "regular expression: only linear layers whose names it finds get adapters"}
    )
    base_quantization: str | None = field(
        default=None, metadata={"help": "QLoRA: the frozen model in nf4, fp4 or int8 (bitsandbytes)"}
    )
    save_merged: bool = field(
        default=False, metadata={"help": "save the model with the adapter merged, too, in the folder 'merged'"}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "two evaluations must share their mask, or have none"}
    )
    attacks: list[str] | None = field(default=None, metadata={"help": "NAME:key=value,…: run on the saved result"})
    export: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "write the result to be served, and attack that: {format: q4_k_m, rounding: stochastic}"},
    )
    metrics: list[str] | None = field(
        default=None, metadata={"help": "metrics of your own, package.module.name:key=value,…: taken of every sample"}
    )
    eval_limit: int | None = field(default=None, metadata={"help": "score at most so many items of each set"})
    target: float = field(
        default=TARGET,
        metadata={
            "help": "forgotten is: this share of the way to the level of a model that never knew, by the interval"
        },
    )
    evaluate_every: int | None = field(
        default=None, metadata={"help": "look at the model every so many steps: score a few items of the benchmark"}
    )
    stop: str | None = field(
        default=None, metadata={"help": "target: end at the first look that finds the target reached; by default never"}
    )
    keep: str = field(
        default="last", metadata={"help": "the weights to end with: last, or best (of the looks within utility_bound)"}
    )
    utility_bound: float = field(
        default=0.1, metadata={"help": "keep: best takes looks with at most this relative loss of utility"}
    )
    moved_every: int | None = field(
        default=None,
        metadata={"help": "every so many steps: how far along the true gradient the step went, at one evaluation more"},
    )
    processes: int | None = field(
        default=None, metadata={"help": "refuse to run in any other number of processes than this"}
    )
    strategy: str = field(
        default="auto", metadata={"help": "of several processes: replicas, or fsdp2 (weights shared out)"}
    )
    share: str = field(
        default="data",
        metadata={"help": "what processes share in a zeroth-order step: data (rows each) or directions"},
    )
    check_processes_every: int = field(
        default=50, metadata={"help": "compare the processes' weights every so many steps; 0 for never"}
    )

    learning_rate: float = field(default=1e-5, metadata={"help": "η; the hybrid's first-order rate"})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "as in transformers"})
    logging_steps: float = field(default=1, metadata={"help": "log every so many steps"})
    save_strategy: str = field(default="steps", metadata={"help": "when checkpoints are written: no, steps or epoch"})
    save_steps: float = field(default=100, metadata={"help": "steps between checkpoints"})
    save_total_limit: int | None = field(default=1, metadata={"help": "checkpoints kept while running"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradient clipping of first-order steps; 0 for none"})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "trackers, as in transformers"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "must stay off: batches are nested"})
    disable_tqdm: bool | None = field(default=True, metadata={"help": "letgo shows progress itself"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "must stay off: NaN stops the run"})
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "a language model's buffers are the same in all processes"}
    )

    def __post_init__(self) -> None:
        if self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            asked = f"deepspeed: {self.deepspeed}" if self.deepspeed else "the launcher"
            raise UserError(
                f"{asked} asks for DeepSpeed, which letgo does not use\n"
                "  to share the weights out over processes, with any optimizer: strategy: fsdp2, or accelerate launch "
                "--config_file recipes/launch/fsdp2.yaml"
            )
        self._check_ranges()
        if self.export:
            export_settings(self.export)
        self._refuse_trainers_evaluations()
        self._check_looks()
        self.check_float16()
        # Otherwise each of several processes would take itself for the only one.
        if not torch.cuda.is_available() and processes.asked() > 1:
            self.use_cpu = True
        given = self.output_dir
        super().__post_init__()
        # TrainingArguments would write to a folder of its own choosing where none is given.
        self.output_dir = given

    @property
    def attacks_made(self) -> list[str]:
        """The attacks on the result: those named, and the exported file where one is written."""
        named = self.attacks or []
        return [*named, "exported"] if self.export and "exported" not in named else list(named)

    def _check_looks(self) -> None:
        for key, value in (("stop", "target"), ("keep", "best")):
            if getattr(self, key) == value and self.evaluate_every is None:
                raise UserError(f"{key}: {value} goes by looks at the model: {LOOKS}")

    def _check_ranges(self) -> None:
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for key, kind in field_types().items():
            value = getattr(self, key)
            if value != defaults[key] and (problem := out_of_range(key, value, kind)):
                raise UserError(f"{key} must be {problem}, but is {shown(value)}")
        for key in ("save_steps", "logging_steps", "warmup_steps"):
            value = getattr(self, key)
            if value > 1 and value != int(value):
                raise UserError(f"{key} must be a whole number of steps, or a share of them below 1, but is {value}")

    def check_float16(self, *, own: bool = False) -> None:
        """Raise a `UserError` for an optimizer that can't step weights in float16.

        Args:
            own: ask one that is not letgo's too, which is then imported.
        """
        if not own and self.objective not in METHODS:
            return  # it may be a one-shot method, for which the optimizer is nothing
        one_shot = is_one_shot(self.objective)
        listed = one_shot or self.optimizer in OPTIMIZERS
        if self.dtype != "float16" or self.lora_rank or not (listed or own):
            return
        if one_shot or not OPTIMIZERS.record(self.optimizer).float16:
            can = ", ".join(record.name for record in OPTIMIZERS if record.float16)
            raise UserError(
                f"dtype: float16 with {self.objective if one_shot else self.optimizer}: small gradients and their "
                "squares are 0 in float16, and what is divided by them is NaN\n"
                "  take dtype: bfloat16 or float32; or train adapters (lora_rank: 8), which are in float32; or take an "
                f"optimizer without gradients and squares: {can}"
            )

    def _refuse_trainers_evaluations(self) -> None:
        given = {name: _plain(getattr(self, name)) for name in (*TRAINERS, "save_strategy", "lr_scheduler_type")}
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name, instead in NOT_USED.items():
            if _plain(getattr(self, name)) not in (None, _plain(defaults[name])):
                raise UserError(f"{name} is of transformers' Trainer and changes nothing in letgo\n  {instead}")
        for name, instead in TRAINERS.items():
            if given[name] not in (None, False, _plain(defaults[name])):
                raise UserError(f"{name} is of transformers' own evaluations, which letgo does not run\n  {instead}")
        if given["save_strategy"] == "best":
            raise UserError(
                f"save_strategy: best is of transformers' own evaluations, which letgo does not run\n  {KEEP}"
            )
        if given["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy"):
            raise UserError(
                f"lr_scheduler_type: {given['lr_scheduler_type']} follows transformers' own evaluations, which letgo "
                f"does not run; take another schedule\n  {LOOKS}"
            )


def make_config(settings: Mapping[str, Any], *, where: str = "config") -> UnlearnConfig:
    """A checked `UnlearnConfig` from settings. `where` is the file or call that messages name.

    `objective` and `optimizer` may be "NAME:key=value,…"; their settings then go to `objective_args` and
    `optimizer_args`.
    """
    resolved = resolve(settings, where, field_types(), _CHOICES)
    _check_transformers(where, resolved)
    try:
        return UnlearnConfig(**resolved)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # transformers and accelerate raise many kinds
        which = [key for key, value in resolved.items() if not _alone(key, value)] or ["these settings"]
        raise UserError(f"{where}: {', '.join(which)}: transformers can't use it ({first_line(error)})") from error


def _alone(key: str, value: Any) -> bool:
    """Whether transformers can use a setting by itself."""
    try:
        UnlearnConfig(**{key: value})
    except Exception:  # as in `make_config`
        return False
    return True


def read_config(path: Path | None, assignments: Sequence[str] = (), **flags: Any) -> UnlearnConfig:
    """The config that a file, flags and `--set` make, the later over the earlier. Flags of None are not given."""
    settings, where = gathered(path, assignments, flags)
    return make_config(settings, where=where)


def resolved_settings(config: UnlearnConfig) -> dict[str, Any]:
    """The settings that make this config again: those that every run has, and others that differ from their defaults.
    Tokens are never among them."""
    bare = _bare_config()
    values = {key: _plain(getattr(config, key)) for key in field_types()}
    return {key: value for key, value in values.items() if key in _FIRST or value != _plain(getattr(bare, key))}


def dump_config(config: UnlearnConfig) -> str:
    """The resolved config as YAML that `letgo unlearn` reads."""
    settings = resolved_settings(config)
    ordered = {k: settings[k] for k in _FIRST if k in settings} | settings
    return settings_text(ordered)


_FIRST = (
    "model",
    "dtype",
    "benchmark",
    "forget",
    "retain",
    "template",
    "objective",
    "objective_args",
    "retain_loss",
    "retain_weight",
    "optimizer",
    "optimizer_args",
    "trainable",
    "learning_rate",
    "lr_scheduler_type",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "long_rows",
    "target",
    "seed",
    "attacks",
    "output_dir",
)


@functools.cache
def field_types() -> dict[str, Any]:
    """Every key of a run's YAML and its type."""
    hints = typing.get_type_hints(UnlearnConfig)
    return {f.name: hints[f.name] for f in dataclasses.fields(UnlearnConfig) if f.init and f.name not in HIDDEN}


@functools.cache
def _bare_config() -> UnlearnConfig:
    return UnlearnConfig()


def _check_transformers(where: str, settings: Mapping[str, Any]) -> None:
    trackers = settings.get("report_to")
    for name in [trackers] if isinstance(trackers, str) else trackers or ():
        if name not in (known := ("none", "all", *INTEGRATION_TO_CALLBACK)):
            raise UserError(
                f"{where}: report_to has {name!r}{did_you_mean(str(name), known)}; known: {', '.join(known)}"
            )
    if isinstance(given := settings.get("accelerator_config"), str):
        with located(f"{where}: accelerator_config"):
            given = parse_json(read_text(Path(given)), Path(given))
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f"{where}: accelerator_config is {shown(given)}, which is not a mapping")
    check_settings(f"{where}: accelerator_config", [AcceleratorConfig], given or {})
    for key in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if isinstance(settings.get(key), str):
            raise UserError(f"{where}: {key} is {shown(settings[key])}, which is not a mapping")


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)
