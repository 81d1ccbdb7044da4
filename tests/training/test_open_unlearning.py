"""open-unlearning's experiments as letgo's YAML: the same losses, and everything that is not the same is listed."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml
from torch.nn import functional as F

from letgo.core.errors import UserError
from letgo.objectives import create_objective
from letgo.training.config import make_config
from letgo.training.open_unlearning import translate
from tests import shaped, tiny

MODEL = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"


def composed(handler="NPO", method_args=None, **args) -> dict:
    """A composed config in the layout of Hydra's `.hydra/config.yaml`."""
    return {
        "model": {
            "model_args": {"pretrained_model_name_or_path": MODEL, "torch_dtype": "bfloat16", "device_map": "cuda"},
            "tokenizer_args": {"pretrained_model_name_or_path": MODEL},
            "template_args": {"apply_chat_template": True, "system_prompt": "You are a helpful assistant."},
        },
        "trainer": {
            "handler": handler,
            "args": {
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 4,
                "learning_rate": 1e-5,
                "bf16": True,
                "optim": "paged_adamw_32bit",
                "output_dir": "${paths.output_dir}",
                "eval_strategy": "no",
                "do_train": True,
                "warmup_epochs": 1.0,
                "num_train_epochs": 10,
                "weight_decay": 0.01,
                "save_strategy": "no",
                "seed": 0,
                **args,
            },
            "method_args": method_args or {},
        },
        "data": {
            "forget": {"TOFU_QA_forget": {"handler": "QADataset", "args": {"max_length": 512}}},
            "anchor": "forget",
        },
        "forget_split": "forget10",
        "retain_split": "retain90",
        "retain_logs_path": None,
        "task_name": "npo_forget10",
        "paths": {"output_dir": "${hydra:runtime.output_dir}"},
        "mode": "unlearn",
    }


def write(tmp_path, config) -> object:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def settings_of(tmp_path, *arguments, **more) -> dict:
    return translate(write(tmp_path, composed(*arguments, **more))).settings


def test_a_composed_config(tmp_path):
    made = translate(write(tmp_path, composed(method_args={"beta": 0.1, "alpha": 2.0, "gamma": 0.5})))
    assert made.settings == {
        "model": MODEL,
        "dtype": "bfloat16",
        "benchmark": "tofu:split=forget10,template=chat",
        "objective": "npo_gdr",
        "objective_args": {"beta": 0.1},
        "retain_weight": 2.0,
        "forget_weight": 0.5,
        "max_length": 512,
        "long_rows": "cut",
        "optimizer": "adamw",
        "learning_rate": 1e-5,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "num_train_epochs": 10,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "weight_decay": 0.01,
        "save_strategy": "no",
        "seed": 0,
        "output_dir": "runs/npo_forget10",
    }
    assert {left.key for left in made.left_out} == {"model.template_args.system_prompt", "trainer.args.bf16"}
    assert make_config(yaml.safe_load(made.text())).retain_weight == 2.0
    assert "#   trainer.args.bf16 = True: letgo computes in the weights' type (dtype)" in made.text()


def test_a_command_line_alone_and_its_list_of_overrides(tmp_path):
    words = [
        "experiment=unlearn/tofu/default.yaml",
        "model=Llama-3.2-1B-Instruct",
        f"model.model_args.pretrained_model_name_or_path={MODEL}",
        "forget_split=forget05",
        "retain_split=retain95",
        "trainer.args.learning_rate=2e-5",
        "++trainer.method_args.delta=0.5",
        "trainer.method_args.gamma=0.125",
        "trainer=SimNPO",
    ]
    made = translate(None, words)
    # γ of SimNPO is β δ; β itself was not given.
    assert made.settings["objective_args"] == {"beta": 4.5, "gamma": 2.25}
    assert made.settings["objective"] == "simnpo_gdr"
    assert made.settings["benchmark"] == "tofu:split=forget05"
    assert (made.settings["forget_weight"], made.settings["learning_rate"]) == (0.125, 2e-5)
    missing = {left.key for left in made.left_out}
    assert missing == {f"trainer.method_args.{key}" for key in ("beta", "alpha", "retain_loss_type")}
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump(words))
    assert translate(tmp_path / "overrides.yaml") == made


def test_overrides_lie_over_the_config_and_another_trainer_takes_its_settings_away(tmp_path):
    path = write(tmp_path, composed(method_args={"beta": 0.1, "alpha": 2.0}))
    same = translate(path, ["trainer.method_args.alpha=5", "forget_split=forget01", "retain_split=retain99"])
    assert same.settings["retain_weight"] == 5.0
    assert same.settings["benchmark"].startswith("tofu:split=forget01")
    other = translate(path, ["trainer=GradAscent"]).settings
    assert other["objective"] == "ga"
    assert other["num_train_epochs"] == 10
    assert not {"objective_args", "retain_weight"} & set(other)


@pytest.mark.parametrize(
    ("handler", "given", "expected"),
    [
        ("GradAscent", {}, {"objective": "ga"}),
        ("GradDiff", {"alpha": 3.0}, {"objective": "graddiff", "retain_weight": 3.0}),
        ("GradDiff", {"retain_loss_type": "KL"}, {"objective": "ga_klr", "retain_weight": 1.0}),
        ("NPO", {"alpha": 0.0}, {"objective": "npo", "objective_args": {"beta": 1.0}, "retain_loss": "none"}),
        ("UNDIAL", {"beta": 10, "alpha": 0.0}, {"objective": "undial", "objective_args": {"strength": 10}}),
        ("CEU", {}, {"objective": "ce_u", "objective_args": {"ignore_first": 1}}),
        (
            "SatImp",
            {},
            {"objective": "satimp_gdr", "retain_weight": 0.1, "objective_args": {"beta1": 5.0, "beta2": 1.0}},
        ),
        ("WGA", {"gamma": 0.1}, {"objective": "wga_gdr", "forget_weight": 0.1, "objective_args": {"beta": 1.0}}),
        ("DPO", {"beta": 0.1, "gamma": 0.5}, {"objective": "idk_dpo_gdr", "forget_weight": 10.0}),
        ("PDU", {}, {"objective": "pdu", "retain_weight": 1.0, "retain_weight_schedule": "constant"}),
        (
            "PDU",
            {
                "alpha": 100.0,
                "primal_dual": True,
                "retain_loss_eps": 0.3,
                "dual_step_size": 5,
                "dual_warmup_epochs": 5,
            },
            {
                "retain_loss": "ce",
                "retain_weight": 100.0,
                "retain_weight_schedule": "dual:bound=0.3,rate=5.0,warmup=0.5",
            },
        ),
        ("PDU", {"primal_dual": True, "alpha": 0.0}, {"retain_loss": "ce", "retain_weight": 0.0}),
        (
            "RMU",
            {
                "module_regex": r"model\.layers\.7",
                "trainable_params_regex": [r"model\.layers\.(5|6|7)\.mlp\.down_proj\.weight"],
                "steering_coeff": 2,
                "retain_loss_type": "EMBED_DIFF",
                "alpha": 10,
            },
            {
                "objective": "rmu",
                "objective_args": {"steering": 2, "layer": 7},
                "retain_loss": "embedding",
                "retain_weight": 10.0,
                "trainable": r"^(?:model\.layers\.(5|6|7)\.mlp\.down_proj\.weight)$",
            },
        ),
    ],
)
def test_each_trainer_with_the_defaults_of_its_class(tmp_path, handler, given, expected):
    settings = settings_of(tmp_path, handler, given)
    assert {key: settings.get(key) for key in expected} == expected
    make_config(settings)


# -- their formulas, written out ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch():
    """A model, and rows whose prompts are not labelled."""
    model = tiny.make_model(0)
    generator = torch.Generator().manual_seed(3)

    def part() -> dict:
        ids = torch.randint(3, 30, (2, 6), generator=generator)
        labels = ids.clone()
        labels[:, :2] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    parts = {name: part() for name in ("forget", "retain", "alternative")}
    references = {"forget": torch.tensor([-9.0, -11.0]), "alternative": torch.tensor([-10.0, -8.0])}
    for name, logps in references.items():
        parts[name]["reference_logps"] = logps
    return model, parts


def losses(model, part) -> torch.Tensor:
    """Cross-entropy of each token, 0 where it has no label, of shape (rows, length − 1)."""
    logits = model(part["input_ids"], attention_mask=part["attention_mask"]).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), part["labels"][:, 1:], ignore_index=-100, reduction="none")


def their_loss(handler: str, given: dict, model, parts) -> torch.Tensor:
    forget, retain = losses(model, parts["forget"]), losses(model, parts["retain"])
    counts = (parts["forget"]["labels"] != -100).sum(-1)
    beta = given.get("beta", 1.0)
    if handler == "GradDiff":
        loss = -forget.sum() / counts.sum()
    elif handler == "SimNPO":
        loss = -F.logsigmoid(beta * (forget.sum(-1) / counts - given["delta"])).mean() * 2 / beta
    else:
        lose = -forget.sum(-1) - parts["forget"]["reference_logps"]
        win = 0.0
        if handler == "DPO":
            win = -losses(model, parts["alternative"]).sum(-1) - parts["alternative"]["reference_logps"]
        loss = -2 / beta * F.logsigmoid(beta * (win - lose)).mean()
    return given["gamma"] * loss + given["alpha"] * retain.sum() / (parts["retain"]["labels"] != -100).sum()


@pytest.mark.parametrize("handler", ["GradDiff", "NPO", "SimNPO", "DPO"])
def test_the_objective_is_their_loss(tmp_path, batch, handler):
    given = {"gamma": 0.7, "alpha": 1.5}
    if handler != "GradDiff":
        given["beta"] = 0.3
    if handler == "SimNPO":
        given["delta"] = 0.4
    config = make_config(settings_of(tmp_path, handler, given))
    objective = create_objective(
        config.objective,
        **(config.objective_args or {}),
        retain_loss=config.retain_loss,
        retain_weight=config.retain_weight,
        forget_weight=config.forget_weight,
    )
    model, parts = batch
    found, expected = objective(model, parts), their_loss(handler, given, model, parts)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) for loss in (found, expected)]
    pairs = [(a, b) for a, b in zip(*gradients, strict=True) if b is not None]
    assert pairs
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("handler", "given"), [("WGA", {"beta": 0.5}), ("SatImp", {"beta1": 4.0, "beta2": 1.0}), ("CEU", {})]
)
def test_the_reweighted_objectives_have_their_gradient(tmp_path, batch, handler, given):
    weights = {} if handler == "CEU" else {"gamma": 0.7, "alpha": 1.5}
    config = make_config(settings_of(tmp_path, handler, {**given, **weights}))
    objective = create_objective(
        config.objective,
        **(config.objective_args or {}),
        retain_weight=config.retain_weight,
        forget_weight=config.forget_weight,
    )
    model, parts = batch
    part = parts["forget"]
    if handler == "CEU":
        logits = model(part["input_ids"]).logits[:, :-1][part["labels"][:, 1:] != -100]
        labels = part["labels"][:, 1:][part["labels"][:, 1:] != -100]
        first = torch.tensor([n % (len(labels) // 2) == 0 for n in range(len(labels))])
        target = logits.detach().scatter(1, labels[:, None], -math.inf).softmax(-1)
        # Theirs is a mean over the tokens that are not ignored; letgo's over all.
        expected = F.cross_entropy(logits[~first], target[~first]) * (~first).sum() / len(labels)
    else:
        nll = losses(model, part)[part["labels"][:, 1:] != -100]
        chance = (-nll).exp().detach()
        weight = (
            chance ** given["beta"] if handler == "WGA" else chance ** given["beta1"] * (1 - chance) ** given["beta2"]
        )
        retain = losses(model, parts["retain"]).sum() / (parts["retain"]["labels"] != -100).sum()
        expected = 0.7 * -(weight * nll).mean() + 1.5 * retain
    gradients = [
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for loss in (objective(model, parts), expected)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        if theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


# -- what is not the same ----------------------------------------------------------------------------------------------


def test_muse_wmdp_and_a_reference_that_is_at_hand(tmp_path):
    logs = tmp_path / "MUSE_EVAL.json"
    logs.write_text("{}")
    config = composed(method_args={"alpha": 1.0}) | {"data": {"forget": {"MUSE_forget": {}}}, "forget_split": "forget"}
    muse = config | {"data_split": "News", "retain_split": "retain1", "retain_logs_path": str(logs)}
    assert translate(write(tmp_path, muse)).settings["benchmark"] == f"muse:corpus=news,retain=retain1,retrain={logs}"
    wmdp = config | {"data": {"forget": {"WMDP_forget": {}}}, "data_split": "cyber"}
    assert translate(write(tmp_path, wmdp)).settings["benchmark"] == "wmdp:topics=cyber"


def test_what_letgo_does_not_do_is_listed_with_its_reason(tmp_path):
    config = composed("GradDiff", {"alpha": 1.0, "nosuch": 3}, optim="lion_32bit", eval_on_start=True, fp16=False)
    config["trainer"]["args"] |= {"num_train_epochs": "${epochs}", "warmup_epochs": 4, "deepspeed": "ds.json"}
    config["model"]["use_lora"] = True
    config |= {"retain_split": "retain95", "retain_logs_path": "nowhere.json", "cl": {"method": "easy"}}
    made = translate(write(tmp_path, config), ["~data.anchor", "trainer.args.num_train_epochs=2"])
    reasons = {left.key: left.reason for left in made.left_out}
    for key, reason in {
        "trainer.method_args.nosuch": "letgo's ga has no such setting",
        "trainer.args.optim": "adamw is taken",
        "trainer.args.eval_on_start": "evaluate_every",
        "trainer.args.warmup_epochs": "no warm-up is set",
        "retain_split": "retain90 with forget10",
        "retain_logs_path": "add retain=FILE",
        "cl": "letgo has no such setting",
        "model.use_lora": "letgo has no such setting",
        "~data.anchor": "not of the form key=value",
    }.items():
        assert reason in reasons[key], key
    assert "trainer.args.fp16" not in reasons


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": {"handler": "SimNPOO"}}, "did you mean 'SimNPO'"),
        ({"trainer": {"handler": "FinetuneTrainer"}}, "not unlearning: benchmark tofu:learn=full"),
        ({"trainer": {}}, "no trainer is named"),
        ({"trainer": {"handler": "NPO", "method_args": {"retain_loss_type": "JS"}}}, "retain_loss_type is 'JS'"),
        ({"model": {}}, "which model is not said"),
        ({"forget_split": None, "data": {}}, "it translates experiments on TOFU, MUSE and WMDP"),
    ],
)
def test_what_cant_be_a_run_of_letgo_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        translate(write(tmp_path, composed() | change))


def test_the_command(letgo, tmp_path):
    path = write(tmp_path, composed(method_args={"beta": 0.1}))
    code, out, _ = letgo("show-config", path, "--from", "open-unlearning", "--set", "forget_split=forget05")
    assert code == 0
    assert yaml.safe_load(out)["objective"] == "npo_gdr"
    assert "#   retain_split = 'retain90': letgo retains retain95 with forget05" in out
    code, out, _ = letgo("show-config", path, "--from", "open-unlearning", "--json")
    assert json.loads(out)["settings"]["objective_args"] == {"beta": 0.1}
    for words, message in [
        ((path, "--from", "hydra"), "translates experiments of open-unlearning alone"),
        ((), "give a run's YAML"),
    ]:
        code, _, err = letgo("show-config", *words)
        assert (code, message in err) == (2, True)


def test_letgo_plan_takes_the_yaml(letgo, tmp_path, monkeypatch):
    shaped.write_tofu(tmp_path / "data" / "tofu")
    monkeypatch.setenv("LETGO_DATA", str(tmp_path / "data"))
    tokenizer = shaped.tokenizer()
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
    model = tiny.save(tmp_path / "model", tiny.make_model(0, **shape), tokenizer)
    config = composed(method_args={"beta": 0.1}, max_steps=4, report_to="none")
    config["model"] = {"model_args": {"pretrained_model_name_or_path": str(model)}}
    config["data"]["forget"]["TOFU_QA_forget"]["args"]["max_length"] = 64
    path = write(tmp_path, config | {"forget_split": "forget01", "retain_split": "retain99"})
    code, out, _ = letgo("show-config", path, "--from", "open-unlearning")
    assert code == 0
    (tmp_path / "run.yaml").write_text(out)
    code, out, err = letgo("plan", tmp_path / "run.yaml")
    assert code == 0, err
    assert "23,456 parameters" in out
