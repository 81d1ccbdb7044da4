"""open-unlearning's experiments as letgo's YAML: what its composed config and its command line say, and what of it
letgo can't do.

Their loss is γ ℓ_f + α ℓ_r, letgo's w ℓ_f + λ ℓ_r. Where a forget term differs by a factor it goes into w, and every
other difference is listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letgo.core.catalog import did_you_mean, format_spec, parse_spec, settings_of
from letgo.core.errors import UserError, first_line
from letgo.core.files import parse_settings, read_text, settings_text
from letgo.core.values import shown
from letgo.objectives import OBJECTIVES
from letgo.objectives.schedules import Dual
from letgo.training.settings import NOT_USED, TRAINERS, check_early

Config = dict[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """What the YAML does not say as the experiment does, and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Translation:
    settings: dict[str, Any]
    left_out: list[LeftOut]

    def text(self) -> str:
        """The YAML, with what is left out as comments before it."""
        lines = ["# from an experiment of open-unlearning"]
        if self.left_out:
            lines.append("# not the same here:")
        for left in self.left_out:
            value = "" if left.value is None else f" = {shown(left.value)}"
            lines.append(" ".join(f"#   {left.key}{value}: {left.reason}".split("\n")))
        return "\n".join(lines) + "\n" + settings_text(self.settings)


@dataclass(frozen=True)
class _Method:
    """A trainer of open-unlearning: letgo's objective, its settings by their names there with the defaults of the
    trainer's class, and whether it has γ, α and a retain loss."""

    objective: str
    settings: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    weighted: bool = True
    gamma: float = 1.0
    alpha: float = 1.0
    differs: str = ""


_METHODS: Mapping[str, _Method] = {
    "GradAscent": _Method("ga", weighted=False),
    "GradDiff": _Method("ga"),
    "NPO": _Method("npo", {"beta": ("beta", 1.0)}),
    # There the argument is β (NLL/|y| − δ), here β NLL/|y| − γ.
    "SimNPO": _Method("simnpo", {"beta": ("beta", 1.0), "delta": ("gamma", 0.0)}),
    "DPO": _Method(
        "idk_dpo", {"beta": ("beta", 1.0)}, differs="the preferred answers are refusals of letgo's own list"
    ),
    "RMU": _Method(
        "rmu",
        {"steering_coeff": ("steering", 20.0)},
        differs="hidden states count at every token of a row, there at the answer's alone",
    ),
    "UNDIAL": _Method(
        "undial",
        {"beta": ("strength", 1.0)},
        differs="the mean is over the answer's tokens, there over prompt and padding too",
    ),
    "CEU": _Method(
        "ce_u",
        {"ignore_first_n_answer_tokens": ("ignore_first", 1.0)},
        weighted=False,
        differs="the mean is over all label tokens, there without those that are ignored",
    ),
    "SatImp": _Method("satimp", {"beta1": ("beta1", 5.0), "beta2": ("beta2", 1.0)}, alpha=0.1),
    "WGA": _Method("wga", {"beta": ("beta", 1.0)}),
    "PDU": _Method("pdu", differs="λ moves once a step of the optimizer, there once a micro-batch"),
}
_RETAIN = {"NLL": "ce", "KL": "kl", "EMBED_DIFF": "embedding"}
_SUFFIXES = {"ce": "gdr", "kl": "klr"}
_KL = "KL is over the answer's tokens, there over prompt and padding too"
_NO_OBJECTIVE = {
    "FinetuneTrainer": "not unlearning: benchmark tofu:learn=full or learn=retain with objective ft makes such models",
}
_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "paged_adamw_32bit", "paged_adamw"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "adamw_8bit"),
    "sgd": "sgd",
}
_DTYPES = ("float32", "bfloat16", "float16")
_TRAINERS_OWN = dict.fromkeys(
    ("do_train", "do_eval", "save_only_model", "remove_unused_columns", "ddp_find_unused_parameters", "logging_dir")
)
"""Settings of transformers' Trainer that say nothing of the method: neither taken over nor listed."""
_PRECISION = ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32")
_HANDLED = (
    "trainer",
    "model",
    "data",
    "forget_split",
    "retain_split",
    "holdout_split",
    "retain_logs_path",
    "data_split",
)
_BOOKKEEPING = ("mode", "task_name", "paths", "hydra", "collator", "experiment", "eval", "seed", "question_key")
_GROUPS = ("trainer", "model", "data", "eval")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def translate(path: Path | None, overrides: Sequence[str] = ()) -> Translation:
    """What an experiment comes to here.

    Args:
        path: the composed config (`.hydra/config.yaml`), or the list of a command line's overrides
            (`.hydra/overrides.yaml`).
        overrides: of the command line, the later over the earlier: `trainer=NPO`, `trainer.args.learning_rate=1e-5`.

    Raises:
        UserError: no experiment of open-unlearning; a trainer, a benchmark or a model that letgo can't tell or does not
            have.
    """
    where = str(path) if path else "command line"
    loaded = parse_settings(read_text(path, "config file"), where) if path else {}
    if isinstance(loaded, list):
        overrides, loaded = [*map(str, loaded), *overrides], {}
    if not isinstance(loaded, dict):
        raise UserError(f"{where}: neither a composed config of open-unlearning nor a list of overrides")
    left: list[LeftOut] = []
    config, groups = _overridden(loaded, overrides, left)
    config = _resolved(config, config)
    settings: Config = {"model": _model(config, groups, where, left)}
    settings |= _types(config, left)
    settings["benchmark"] = _benchmark(config, groups, where, left)
    settings |= _objective(config, where, left)
    settings |= _lengths(config)
    settings |= _training(config, left)
    for key, value in config.items():
        if key not in (*_HANDLED, *_BOOKKEEPING) and value is not None:
            left.append(LeftOut(key, value, "letgo has no such setting"))
    check_early(None, (), **settings)
    return Translation(settings, left)


def _overridden(config: Config, overrides: Sequence[str], left: list[LeftOut]) -> tuple[Config, dict[str, str]]:
    """The config with a command line's overrides, and the config groups that it chose (`trainer=NPO`, `model=…`)."""
    groups: dict[str, str] = {}
    values: list[tuple[str, Any]] = []
    for override in overrides:
        key, equals, text = override.lstrip("+").partition("=")
        key = key.strip()
        if not equals or not key or key.startswith("~"):
            left.append(LeftOut(override, None, "not of the form key=value"))
            continue
        value = parse_settings(text, override)
        if "/" in key or "@" in key or key == "experiment" or (key in _GROUPS and isinstance(value, str)):
            groups[key] = str(value)
        else:
            values.append((key, value))
    if "trainer" in groups:
        # Another trainer's settings are not this one's; those of transformers' Trainer stay.
        kept = _mapping(config.get("trainer")).get("args")
        config = {**config, "trainer": {"group": groups["trainer"], **({"args": kept} if kept else {})}}
    # As in Hydra, values lie over the groups, wherever they stand.
    for key, value in values:
        config = _with(config, key.split("."), value)
    return config, groups


def _with(config: Config, path: Sequence[str], value: Any) -> Config:
    if not path:
        return value
    inner = _mapping(config.get(path[0])) if isinstance(config, dict) else {}
    return {**config, path[0]: _with(inner, path[1:], value)}


def _resolved(value: Any, config: Config, depth: int = 0) -> Any:
    """A value with the config's own references put in: `${forget_split}`; others (of Hydra itself) stay."""
    if isinstance(value, dict):
        return {key: _resolved(inner, config, depth) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, config, depth) for inner in value]
    if not isinstance(value, str) or depth > 8:
        return value
    if whole := _REFERENCE.fullmatch(value):
        found = _get(config, whole[1])
        return value if found is None else _resolved(found, config, depth + 1)

    def put(match: re.Match[str]) -> str:
        found = _resolved(match[0], config, depth + 1)
        return str(found) if isinstance(found, str | int | float) else match[0]

    return _REFERENCE.sub(put, value)


def _get(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = _mapping(config).get(key)
    return config


def _mapping(value: Any) -> Config:
    return value if isinstance(value, dict) else {}


def _known(value: Any) -> bool:
    """Whether a value is there, with every reference resolved."""
    return value is not None and not (isinstance(value, str) and "${" in value)


def _model(config: Config, groups: Mapping[str, str], where: str, left: list[LeftOut]) -> str:
    name = _get(config, "model.model_args.pretrained_model_name_or_path")
    if not _known(name) or not isinstance(name, str):
        chosen = f" (model={groups['model']} only names a config of theirs)" if "model" in groups else ""
        raise UserError(
            f"{where}: which model is not said{chosen}; give "
            "--set model.model_args.pretrained_model_name_or_path=DIRECTORY_OR_HUB_ID"
        )
    tokenizer = _get(config, "model.tokenizer_args.pretrained_model_name_or_path")
    if _known(tokenizer) and tokenizer != name:
        left.append(LeftOut("model.tokenizer_args", tokenizer, "letgo takes the tokenizer that lies with the model"))
    template = _mapping(_get(config, "model.template_args"))
    for key in ("system_prompt", "date_string"):
        if template.get("apply_chat_template") and template.get(key):
            why = "letgo's chat template is the tokenizer's own, with nothing added"
            left.append(LeftOut(f"model.template_args.{key}", template[key], why))
    for key, value in _mapping(config.get("model")).items():
        if value and key not in ("model_args", "tokenizer_args", "template_args"):
            left.append(LeftOut(f"model.{key}", value, "letgo has no such setting"))
    return name


def _types(config: Config, left: list[LeftOut]) -> Config:
    arguments = _mapping(_get(config, "model.model_args"))
    for key, value in arguments.items():
        if key not in ("pretrained_model_name_or_path", "torch_dtype", "dtype", "device_map", "attn_implementation"):
            left.append(LeftOut(f"model.model_args.{key}", value, "letgo has no such setting"))
    if (attention := arguments.get("attn_implementation")) not in (None, "sdpa"):
        left.append(LeftOut("model.model_args.attn_implementation", attention, "transformers' default is taken"))
    dtype = arguments.get("torch_dtype", arguments.get("dtype"))
    if dtype in _DTYPES:
        return {"dtype": dtype}
    if dtype is not None:
        left.append(LeftOut("model.model_args.torch_dtype", dtype, f"letgo has {', '.join(_DTYPES)}; float32 is taken"))
    return {}


def _benchmark(config: Config, groups: Mapping[str, str], where: str, left: list[LeftOut]) -> str:
    """The benchmark with its settings, told by the split, the experiment and the data sets' names."""
    forget, kept, logs = (config.get(key) for key in ("forget_split", "retain_split", "retain_logs_path"))
    sets = [*groups.values(), *_mapping(_get(config, "data.forget")), *_mapping(config.get("eval"))]
    names = " ".join(map(str, sets)).lower()
    data_split = str(config.get("data_split") or "").lower()
    if _get(config, "data.anchor") not in (None, "forget"):
        left.append(LeftOut("data.anchor", _get(config, "data.anchor"), "an epoch of letgo is one of the forget set"))
    if re.fullmatch(r"forget\d\d", str(forget)) or "tofu" in names:
        settings: Config = {"split": forget} if _known(forget) else {}
        usual = f"retain{100 - int(str(forget)[-2:]):02d}" if _known(forget) else None
        if _known(kept) and kept != usual:
            left.append(
                LeftOut("retain_split", kept, f"letgo retains {usual or 'retain90'} with {forget or 'forget10'}")
            )
        if template := _template(config, left):
            settings["template"] = template
        return _with_reference("tofu", settings, "retain", logs, left)
    if "muse" in names or data_split in ("news", "books"):
        settings = {"corpus": data_split} if data_split else {}
        if _known(forget) and forget != "forget":
            left.append(
                LeftOut("forget_split", forget, "the whole forget set is taken; see request= of benchmark muse")
            )
        if kept in ("retain1", "retain2"):
            settings["retain"] = kept
        return _with_reference("muse", settings, "retrain", logs, left)
    if "wmdp" in names or data_split in ("bio", "cyber"):
        return format_spec("wmdp", {"topics": data_split} if data_split else {})
    raise UserError(
        f"{where}: no benchmark of letgo is told by forget_split={forget}, data_split={data_split or None} or the data "
        "sets' names; it translates experiments on TOFU, MUSE and WMDP"
    )


def _with_reference(name: str, settings: Config, key: str, logs: Any, left: list[LeftOut]) -> str:
    if not _known(logs):
        return format_spec(name, settings)
    spec = format_spec(name, settings | {key: logs})
    if not Path(str(logs)).expanduser().exists():
        left.append(
            LeftOut("retain_logs_path", logs, f"no such file here; where it is, add {key}=FILE to the benchmark")
        )
    elif parse_spec(spec) != (name, settings | {key: str(logs)}):
        left.append(LeftOut("retain_logs_path", logs, f"a path with such signs can't be part of {key}=FILE; rename it"))
    else:
        return spec
    return format_spec(name, settings)


def _template(config: Config, left: list[LeftOut]) -> str | None:
    """The template of TOFU's questions; None where the experiment does not say it."""
    given = _mapping(_get(config, "model.template_args"))
    if given.get("apply_chat_template"):
        return "chat"
    tag = given.get("user_start_tag")
    if isinstance(tag, str):
        for start, name in (("[INST]", "llama2"), ("Question:", "plain")):
            if tag.strip().startswith(start):
                return name
        left.append(
            LeftOut("model.template_args.user_start_tag", tag, "letgo has the templates llama2, plain and chat")
        )
    return None


def _objective(config: Config, where: str, left: list[LeftOut]) -> Config:
    trainer = _mapping(config.get("trainer"))
    composed = isinstance(trainer.get("handler"), str)
    name = str(trainer.get("handler") or trainer.get("group") or "")
    if not name:
        raise UserError(f"{where}: no trainer is named (trainer.handler, or --set trainer=NPO)")
    handler = next((known for known in (*_METHODS, *_NO_OBJECTIVE) if known.lower() == name.lower()), name)
    if handler not in _METHODS:
        why = f" ({_NO_OBJECTIVE[handler]})" if handler in _NO_OBJECTIVE else did_you_mean(name, _METHODS)
        raise UserError(f"{where}: letgo has no objective for trainer {name}{why}; it has {', '.join(_METHODS)}")
    method, given = _METHODS[handler], dict(_mapping(trainer.get("method_args")))
    if method.differs:
        left.append(LeftOut(f"trainer={handler}", None, method.differs))

    def value(key: str, usual: Any, ours: Any) -> Any:
        """A setting as given, else the default of the trainer's class; where the trainer was only named, its YAML is
        not at hand, and letgo's own default is taken."""
        if key in given:
            return given.pop(key)
        if composed:
            return usual
        why = f"not given, and what trainer={handler} stands for is in their configs/trainer; letgo's {ours} is taken"
        left.append(LeftOut(f"trainer.method_args.{key}", None, why))
        return ours

    record = OBJECTIVES.record(method.objective)
    own = settings_of(OBJECTIVES.load(method.objective))
    arguments = {o: value(theirs, usual, own[o]) for theirs, (o, usual) in method.settings.items()}
    settings: Config = {"objective": record.name}
    forget_weight = 1.0
    if method.weighted:
        forget_weight = float(value("gamma", method.gamma, 1.0))
        settings |= _retain_term(handler, value, method, left)
    if handler == "SimNPO":
        arguments["gamma"] = arguments["beta"] * arguments["gamma"]
    if handler == "DPO":
        # Theirs is −(2/β) log σ, letgo's as the paper has it −log σ.
        forget_weight *= 2.0 / arguments["beta"]
    if handler == "CEU":
        arguments["ignore_first"] = int(arguments["ignore_first"])
    if handler == "PDU":
        epochs = float(_mapping(trainer.get("args")).get("num_train_epochs") or 3)
        settings["retain_weight_schedule"] = schedule = _dual(value, epochs, left)
        if settings.get("retain_loss") == "none" and schedule != "constant":
            # λ begins at 0, and comes back from there.
            settings |= {"retain_loss": "ce", "retain_weight": 0.0}
    if handler == "RMU":
        arguments |= _layer(given, settings, left)
    if arguments:
        settings["objective_args"] = arguments
    if forget_weight != 1.0:
        settings["forget_weight"] = forget_weight
    for key, unknown in given.items():
        left.append(LeftOut(f"trainer.method_args.{key}", unknown, f"letgo's {record.name} has no such setting"))
    return settings


def _retain_term(handler: str, value: Any, method: _Method, left: list[LeftOut]) -> Config:
    alpha, kind = float(value("alpha", method.alpha, 1.0)), value("retain_loss_type", "NLL", "NLL")
    if alpha == 0.0:
        return {"retain_loss": "none"}
    if kind not in _RETAIN or (kind == "EMBED_DIFF" and handler != "RMU"):
        raise UserError(
            f"trainer.method_args.retain_loss_type is {kind!r}; letgo translates NLL and KL, and EMBED_DIFF of RMU"
        )
    if kind == "KL":
        left.append(LeftOut("trainer.method_args.retain_loss_type", kind, _KL))
    return {**_named(method.objective, _RETAIN[kind]), "retain_weight": alpha}


def _dual(value: Any, epochs: float, left: list[LeftOut]) -> str:
    """How the weight of PDU's retain term moves."""
    usual = Dual()
    bound, rate = value("retain_loss_eps", 0.0, usual.bound), value("dual_step_size", 1.0, usual.rate)
    warmup = float(value("dual_warmup_epochs", 0, usual.warmup * epochs)) / epochs
    if value("dual_update_upon", "step", "step") != "step":
        why = "λ moves after every step; there after an epoch, by the loss of all retain rows"
        left.append(LeftOut("trainer.method_args.dual_update_upon", "epoch", why))
    if not value("primal_dual", False, True) or warmup >= 1.0:
        return "constant"
    return format_spec("dual", {"bound": float(bound), "rate": float(rate), "warmup": warmup})


def _named(objective: str, retain: str) -> Config:
    """An objective with a retain term: by the one name that letgo has for both, where it has one."""
    both = f"{objective}_{_SUFFIXES.get(retain)}"
    return {"objective": OBJECTIVES.record(both).name} if both in OBJECTIVES else {"retain_loss": retain}


def _layer(given: Config, settings: Config, left: list[LeftOut]) -> Config:
    """RMU's layer, and which parameters it trains."""
    patterns = given.pop("trainable_params_regex", None)
    if isinstance(patterns, list) and patterns:
        settings["trainable"] = f"^(?:{'|'.join(map(str, patterns))})$"
    module = given.pop("module_regex", None)
    number = re.search(r"(\d+)$", str(module or ""))
    if number:
        return {"layer": int(number[1])}
    reason = "the layer is not told by its name" if module else "not given"
    left.append(LeftOut("trainer.method_args.module_regex", module, f"{reason}; letgo's own layer is taken"))
    return {}


def _lengths(config: Config) -> Config:
    """The longest row of the forget set; theirs are cut there."""
    for dataset in _mapping(_get(config, "data.forget")).values():
        length = _get(dataset, "args.max_length")
        if isinstance(length, int):
            return {"max_length": length, "long_rows": "cut"}
    return {}


def _training(config: Config, left: list[LeftOut]) -> Config:
    """The settings of transformers' Trainer, with its defaults where letgo's are others."""
    given = dict(_mapping(_get(config, "trainer.args")))
    settings: Config = {"lr_scheduler_type": "linear", "learning_rate": 5e-5}
    if "learning_rate" not in given and not isinstance(_get(config, "trainer.handler"), str):
        del settings["learning_rate"]
        left.append(LeftOut("trainer.args.learning_rate", None, "not given; letgo's default is taken"))
    optimizer = given.pop("optim", "adamw_torch")
    if optimizer in _OPTIMIZERS:
        settings["optimizer"] = _OPTIMIZERS[optimizer]
    else:
        left.append(LeftOut("trainer.args.optim", optimizer, "letgo has it by no such name; adamw is taken"))
    moments = {key: given.pop(key) for key in ("adam_beta1", "adam_beta2", "adam_epsilon") if key in given}
    if moments and settings.get("optimizer", "adamw").startswith("adamw"):
        betas = [float(moments.get("adam_beta1", 0.9)), float(moments.get("adam_beta2", 0.999))]
        settings["optimizer_args"] = {"betas": betas, "eps": float(moments.get("adam_epsilon", 1e-8))}
    output, task = given.pop("output_dir", None), config.get("task_name")
    if _known(output):
        settings["output_dir"] = str(output)
    elif _known(task):
        settings["output_dir"] = f"runs/{task}"
    settings |= _warmup(given, left)
    for key, value in given.items():
        if key in _TRAINERS_OWN or value is None:
            continue
        if key in _PRECISION:
            if value not in (False, "False"):
                left.append(LeftOut(f"trainer.args.{key}", value, "letgo computes in the weights' type (dtype)"))
        elif key in (*NOT_USED, *TRAINERS):
            if value not in (False, "no"):
                left.append(LeftOut(f"trainer.args.{key}", value, (NOT_USED | TRAINERS)[key]))
        elif problem := _problem(key, value):
            left.append(LeftOut(f"trainer.args.{key}", value, problem))
        else:
            settings[key] = value
    return settings


def _warmup(given: Config, left: list[LeftOut]) -> Config:
    """Their `warmup_epochs` and `warmup_ratio`: in letgo a share of the steps."""
    epochs, share = given.pop("warmup_epochs", None), given.pop("warmup_ratio", None)
    if isinstance(epochs, int | float) and epochs:
        share = epochs / float(given.get("num_train_epochs") or 3)
    if not share:
        return {}
    if not 0.0 < float(share) < 1.0:
        left.append(LeftOut("trainer.args.warmup_epochs", epochs, "as long as the run, or longer: no warm-up is set"))
        return {}
    return {"warmup_steps": float(share)}


def _problem(key: str, value: Any) -> str | None:
    """Why letgo does not take a setting of transformers' Trainer; None where it does."""
    if not _known(value):
        return "it refers to what is not in the config"
    try:
        check_early(None, (), **{key: value})
    except UserError as error:
        return first_line(error)
    return None
