"""A run's settings before there is a config: read from a file and the command line, checked by name, type and range.

Nothing here imports torch or transformers, which takes seconds: a typing mistake is told at once (`check_early`).
"""

from __future__ import annotations

import enum
import importlib.util
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from letgo.attacks import ATTACKS
from letgo.benchmarks import BENCHMARKS, OWN_ROWS
from letgo.core.catalog import Catalog, did_you_mean, parse_spec, parse_value, split_chain
from letgo.core.errors import UserError, located
from letgo.core.files import load_settings, parse_settings
from letgo.core.signatures import Kinds, dataclass_defaults, dataclass_fields
from letgo.core.values import Within, compiled, flaw, shown, wanted
from letgo.models.formats import export_settings
from letgo.objectives import METHODS, NOT_SETTINGS, OBJECTIVES, RETAIN_TERMS
from letgo.objectives.records import ObjectiveRecord
from letgo.optim import OPTIMIZERS

ALIASES = {"output": "output_dir", "epochs": "num_train_epochs", "steps": "max_steps"}
CHOICES = {
    "template": ("auto", "plain", "chat"),
    "long_rows": ("error", "cut", "drop"),
    "dtype": ("float32", "bfloat16", "float16"),
    "ddp_backend": ("nccl", "gloo", "mpi", "ccl", "xccl", "hccl", "cncl", "mccl"),
    "save_strategy": ("no", "steps", "epoch", "best"),
    "strategy": ("auto", "replicas", "fsdp2"),
    "share": ("data", "directions"),
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    "stop": ("target",),
    "keep": ("last", "best"),
}
LOOKS = "give evaluate_every: N to score a part of the benchmark every N steps"
STOP = "give stop: target (with evaluate_every and target) to stop as soon as enough is forgotten"
KEEP = (
    "give keep: best (with evaluate_every and utility_bound) to keep the weights that forgot most and are still useful"
)
TRAINERS = {
    **dict.fromkeys(("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "do_eval"), LOOKS),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), KEEP),
}
"""Settings of transformers' evaluations, which need a data set of their own, and what letgo has in their place."""
NOT_USED = {
    "resume_from_checkpoint": "to go on from the last checkpoint in output_dir: --resume, or resume=True",
    **dict.fromkeys(("optim", "optim_args", "optim_target_modules"), "name it by optimizer and optimizer_args"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon"), "give optimizer_args: {betas: […], eps: …}"),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "letgo measures in the numbers that the model has: dtype"),
    "label_smoothing_factor": "the objective is the whole loss; see letgo list objectives",
}
"""Settings of transformers' Trainer that would change nothing here, and what does."""
_AT_LEAST_1 = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_length"),
    *("eval_limit", "lora_rank", "evaluate_every", "moved_every", "processes", "save_total_limit"),
    *("dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout", "eval_accumulation_steps"),
    "torch_empty_cache_steps",
)
RANGES = {
    **dict.fromkeys(_AT_LEAST_1, Within(1)),
    "max_steps": Within(1, 10**9),
    "num_train_epochs": Within(0, 10**6, above=True),
    **dict.fromkeys(("seed", "data_seed"), Within(0, 2**32 - 1)),
    **dict.fromkeys(("save_steps", "logging_steps", "lora_alpha"), Within(0, above=True)),
    "target": Within(0, 1, above=True),
    "lora_dropout": Within(0, 1, below=True),
}
"""The numbers that a setting may be, beside its default; any other one may be what is not negative."""
EARLY_STOPPING = dict.fromkeys(("early_stopping_patience", "early_stopping_threshold", "early_stopping"), STOP)
CATALOGS: Mapping[str, Catalog[Any]] = {"objective": OBJECTIVES, "optimizer": OPTIMIZERS}
# Computed by TrainingArguments itself, or deprecated there: not a user's to set, so not shown either.
HIDDEN = {"deepspeed_plugin", "push_to_hub_token", "hub_token", "parallelism_config"}


def gathered(path: Path | None, assignments: Sequence[str], flags: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The settings that a file, flags and `--set` make, the later over the earlier, and what messages call their
    place. Flags of None are not given."""
    settings = load_settings(path) if path is not None else {}
    for alias, key in ALIASES.items():
        if alias in settings and key not in settings:
            settings[key] = settings.pop(alias)
    settings.update({key: value for key, value in flags.items() if value is not None})
    return merge_overrides(settings, assignments), str(path) if path else "command line"


def merge_overrides(settings: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Settings with `key=value` assignments laid over; "optimizer_args.mu=1e-3" reaches into a mapping."""
    merged = dict(settings)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {assignment!r} is not of the form key=value")
        outer, dot, inner = key.strip().partition(".")
        value = parse_settings(text, f"--set {key.strip()}") if text.strip()[:1] in ("[", "{") else parse_value(text)
        if dot:
            mapping = merged.get(outer) or {}
            if not isinstance(mapping, Mapping):
                raise UserError(f"--set {assignment!r}: {outer} is {shown(mapping)}, which has no settings inside")
            merged[outer] = {**mapping, inner: value}
        else:
            merged[outer] = value
    return merged


def resolve(
    settings: Mapping[str, Any], where: str, known: Kinds, choices: Mapping[str, Sequence[str]] = CHOICES
) -> dict[str, Any]:
    """Settings under their own names, each of the type that `known` says; "NAME:key=value,…" of objective and
    optimizer taken apart.

    Raises:
        UserError: an unknown name; a value that is of another type or none of the choices; settings that exclude each
            other.
    """
    resolved: dict[str, Any] = {}
    for given, value in settings.items():
        key = ALIASES.get(given, given)
        if key in EARLY_STOPPING:
            raise UserError(f"{where}: no setting {key!r}: {EARLY_STOPPING[key]}")
        if key not in known:
            raise UserError(f"{where}: unknown key {given!r}{did_you_mean(given, [*known, *ALIASES])}")
        if key in resolved:
            raise UserError(f"{where}: {given!r} sets {key!r} a second time")
        resolved[key] = _checked(where, given, value, known[key])
    for key, options in choices.items():
        if resolved.get(key) is not None and resolved[key] not in options:
            raise UserError(
                f"{where}: {key} is {resolved[key]!r}{did_you_mean(str(resolved[key]), options)}; "
                f"known: {', '.join(options)}"
            )
    for key in ("objective", "optimizer"):
        if isinstance(resolved.get(key), str) and ":" in resolved[key]:
            name, inline = parse_spec(resolved[key])
            resolved[key] = name
            resolved[f"{key}_args"] = inline | (resolved.get(f"{key}_args") or {})
    for key, catalog in CATALOGS.items():
        if resolved.get(key) and resolved[key] in catalog:
            # An alias is the same setting: two runs that differ by it alone are one line everywhere.
            resolved[key] = catalog.record(str(resolved[key])).name
    for key in ("trainable", "lora_targets"):
        with located(where):
            compiled(key, settings.get(key) or "")
    own = next((key for key in OWN_ROWS if settings.get(key)), None)
    if settings.get("benchmark") and own is not None:
        raise UserError(f"{where}: give either 'benchmark' (which brings its data) or {own!r}, not both")
    if settings.get("lora_rank") is None:
        for key in ("lora_alpha", "lora_dropout", "lora_targets", "base_quantization", "save_merged"):
            if settings.get(key):
                raise UserError(
                    f"{where}: {key} is for LoRA adapters, which lora_rank turns on; give lora_rank: 8, say"
                )
    return resolved


def out_of_range(key: str, value: Any, kind: Any) -> str | None:
    """What the number of a setting must be, where it is not; None for other kinds of settings."""
    if {int, float}.isdisjoint({kind, *typing.get_args(kind)}):
        return None
    return wanted(value, kind, RANGES.get(key, Within(0)))


def check_early(path: Path | None, assignments: Sequence[str] = (), **flags: Any) -> None:
    """Raise a `UserError` for what can be told of a run's settings without torch: names, types, ranges, and the
    settings of the optimizer, the attacks and the benchmark that are letgo's own. All is checked again when the config
    is made.
    """
    _check_early(*gathered(path, assignments, flags))


def check_grid_early(path: Path) -> None:
    """Likewise, of what all cells of a sweep's grid have in common, and of its attacks."""
    grid = load_settings(path)
    if isinstance(grid.get("base"), dict):
        _check_early(grid["base"], f"{path}: base")
    if isinstance(grid.get("attacks"), list):
        check_attacks_early(spec for spec in grid["attacks"] if isinstance(spec, str))


def _check_early(settings: Mapping[str, Any], where: str) -> None:
    known = _fields()
    if known is None:
        return
    given = resolve(settings, where, known)
    defaults = {name: value for path, kind in _classes() for name, value in dataclass_defaults(path, kind).items()}
    for key, value in given.items():
        # As in the config, a default may lie outside: it stands for "not set".
        if value not in (None, defaults.get(key)) and (problem := out_of_range(key, value, known[key])):
            raise UserError(f"{where}: {key} must be {problem}, but is {shown(value)}")
    if given.get("objective"):
        method = METHODS.record(given["objective"])
        more = ""
        if isinstance(method, ObjectiveRecord):
            more = RETAIN_TERMS.record(given.get("retain_loss") or method.retain).target
        METHODS.check_early(method.name, given.get("objective_args") or {}, also=more, skip=(*NOT_SETTINGS, "data"))
    if given.get("optimizer"):
        OPTIMIZERS.check_early(given["optimizer"], {"lr": 1.0, **(given.get("optimizer_args") or {})})
    check_benchmarks_early([given.get("benchmark")])
    if given.get("export"):
        export_settings(given["export"], f"{where}: export")
    check_attacks_early(given.get("attacks") or ())


def check_attacks_early(specs: Iterable[str]) -> None:
    """Likewise, of attacks as they are written."""
    for link in (link for spec in specs for link in split_chain(spec)):
        name, settings = parse_spec(link)
        # `search` alone stands for the usual number of trials.
        given = {key: value for key, value in settings.items() if (key, value) != ("search", True)}
        ATTACKS.check_early(name, given, also="letgo.attacks.engine.spec:Options", skip=("victim",))


def check_benchmarks_early(specs: Iterable[str | None]) -> None:
    """Likewise, of benchmarks; None stands for one that is not given."""
    for spec in filter(None, specs):
        BENCHMARKS.check_early(*parse_spec(spec))


def _fields() -> Kinds | None:
    """Every key of a run's YAML and its type, from the texts of the two classes; None where transformers' text is not
    as expected."""
    theirs, own = (dataclass_fields(path, name) for path, name in _classes())
    if not own or not theirs:
        return None
    return {name: kind for name, kind in {**theirs, **own}.items() if name not in HIDDEN}


def _classes() -> list[tuple[Path, str]]:
    """The files and the names of the two classes, the base first."""
    found = importlib.util.find_spec("transformers")
    folder = (found.submodule_search_locations or [""])[0] if found else ""
    ours = Path(__file__).with_name("config.py")
    return [(Path(folder) / "training_args.py", "TrainingArguments"), (ours, "UnlearnConfig")]


def _checked(where: str, key: str, value: Any, kind: Any) -> Any:
    parts = typing.get_args(kind) or (kind,)
    if problem := flaw(value):
        raise UserError(f"{where}: {key} is {shown(value)} ({problem})")
    if value is None and type(None) not in parts and kind is not Any:
        raise UserError(f"{where}: {key} has no value; leave it out, or give {_kind_name(kind)}")
    enums = [part for part in parts if isinstance(part, type) and issubclass(part, enum.Enum)]
    options = [each.value for part in enums for each in part]
    if value is None or (kind in (str, str | None) and isinstance(value, Path)):
        return None if value is None else str(value)
    listed = isinstance(value, list) and any(typing.get_origin(part) is list for part in parts)
    if options and not listed and value not in options and not isinstance(value, enum.Enum):
        near = did_you_mean(value if isinstance(value, str) else "", options)
        raise UserError(f"{where}: {key} is {shown(value)}{near}; known: {', '.join(map(str, options))}")
    try:
        if isinstance(value, bool) and bool not in parts and {int, float} & set(parts):
            raise ValueError("pydantic takes true for 1")
        adapter = _adapter(kind)
        if adapter is None and wanted(value, kind) is not None:
            raise ValueError("of no kind that is known here")
        return value if adapter is None else adapter.validate_python(value)
    except ValueError as error:
        raise UserError(f"{where}: {key} is {shown(value)}, which is not {_kind_name(kind)}") from error


def _adapter(kind: Any) -> TypeAdapter[Any] | None:
    """A validator for the plain types; others (enums, plugins) are left to TrainingArguments."""
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    origins = {typing.get_origin(part) or part for part in parts}
    return TypeAdapter(kind) if origins <= {int, float, str, bool, dict, list, type(None)} else None


def _kind_name(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a mapping"}
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    lists = {list[str]: "a list of texts"}
    known = names | lists
    return " or ".join(known.get(p, known.get(typing.get_origin(p), str(p))) for p in parts if p is not type(None))
