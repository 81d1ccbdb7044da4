"""Plans of several devices: what each strategy leaves on one, what does not go together, the command."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from typer.testing import CliRunner

import letgo
from letgo.core.errors import UserError
from letgo.planning import plan, plan_devices
from letgo.training.config import make_config
from tests import tiny

BATCHED = {"zo_options": {"engine": "batched", "rank": 1}}


def made(job, devices=2, strategy="ddp", *, device="cpu", memory=None, flops=None, **changes):
    config = make_config(job | changes)
    rate = 1e9 if devices == 1 and flops is None else flops
    return plan_devices(config, devices, strategy, flops=rate, device=device, memory=memory)


def items(found, name):
    return next(p for p in found.plan.phases if p.name == name).items


@pytest.mark.parametrize("optimizer", ["adamw", "zo_sgd", "fozo", "sam", "sophia", "compressed"])
def test_one_device_is_the_plan_of_one(job, optimizer):
    alone = plan(make_config(job | {"optimizer": optimizer}), flops=1e9)
    for strategy in ("single", "ddp", "fsdp2"):
        one = made(job, 1, strategy, optimizer=optimizer).plan
        assert [p.name for p in one.phases] == [p.name for p in alone.phases]
        for here, there in zip(one.phases, alone.phases, strict=True):
            # What an optimizer costs is found by trying, which allocates a little differently a second time.
            assert here.items == pytest.approx(there.items, rel=0.01), (strategy, here.name)
        assert one.seconds == alone.seconds
        assert (one.steps, one.disk, one.flops) == (alone.steps, alone.disk, alone.flops)


def test_no_times_are_told_of_several_devices(job):
    several = made(job, 2)
    assert (several.plan.speed, several.plan.seconds) == (None, {})
    assert "FLOP/s" not in several.text()
    assert several.plan.steps == 4
    with pytest.raises(UserError, match="a plan has times for one device alone"):
        made(job, 2, flops=1e9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_the_time_of_a_device_that_is_not_here_is_not_made_up(job):
    assert plan_devices(make_config(job), 1, device="cuda").plan.speed is None
    assert made(job, 1, device="cuda").plan.speed == 1e9, "it was given"


def test_replicas_hold_all_of_it_and_buffers(job):
    alone, two = made(job, 1, device="cuda"), made(job, 2, device="cuda")
    whole = alone.plan.model["bytes"]
    for name in ("train", "step"):
        assert items(two, name) == {**items(alone, name), "buffers of DDP": whole}
    assert items(two, "evaluate") == items(alone, "evaluate")
    assert two.rows == 2 * alone.rows
    zeroth = [made(job, n, device="cuda", optimizer="zo_sgd") for n in (1, 2)]
    for name in (phase.name for phase in zeroth[0].plan.phases):
        assert "buffers of DDP" not in items(zeroth[1], name), "replicas without gradients are not wrapped"
        assert items(zeroth[1], name) == pytest.approx(items(zeroth[0], name), rel=0.01), name


def test_shards_hold_a_part(job):
    alone, two, four = made(job, 1), made(job, 2, "fsdp2"), made(job, 4, "fsdp2")
    for name in ("weights", "optimizer state"):
        assert items(two, "train")[name] == pytest.approx(items(alone, "train")[name] / 2, rel=0.02)
        assert items(four, "train")[name] == pytest.approx(items(alone, "train")[name] / 4, rel=0.02)
    assert items(four, "step")["gradients"] == pytest.approx(items(alone, "step")["gradients"] / 4, rel=0.02)
    assert items(two, "train")["gathered layers"] > 0
    zeroth = made(job, 2, "fsdp2", optimizer="zo_sgd")
    assert items(zeroth, "train, zeroth")["kept copy of the shards"] == items(zeroth, "train, zeroth")["weights"]


def test_whole_gradients_of_windows_are_followed(job):
    plain = made(job, 2, "fsdp2")
    window = made(job, 2, "fsdp2", gradient_accumulation_steps=2)
    assert sum(items(window, "train").values()) > sum(items(plain, "train").values())


def test_rows_and_steps(job):
    rows = made(job, 1).plan
    data = made(job, 2, optimizer="zo_sgd", max_steps=-1, num_train_epochs=2)
    directions = made(job, 2, optimizer="zo_sgd", share="directions", max_steps=-1, num_train_epochs=2)
    alone = made(job, 1, optimizer="zo_sgd", max_steps=-1, num_train_epochs=2)
    assert directions.plan.steps == alone.plan.steps >= data.plan.steps
    assert (data.rows, directions.rows) == (2 * alone.rows, alone.rows)
    assert rows.steps == 4


# -- whether it fits ---------------------------------------------------------------------------------------------------


@pytest.fixture
def large(job, tmp_path):
    """Two thousand million parameters, of which only the config is there."""
    from transformers import LlamaConfig

    LlamaConfig(num_hidden_layers=8, vocab_size=32000).save_pretrained(tmp_path / "large")
    tiny.make_tokenizer().save_pretrained(tmp_path / "large")
    return job | {"model": str(tmp_path / "large"), "dtype": "bfloat16"}


def test_it_fits_or_says_on_what_it_would(large):
    one = made(large, 1, device="cuda", memory=80 * 10**9)
    need = one.needed
    assert one.fits
    assert "does it fit?  yes" in one.text()
    memory = int(0.7 * need)
    tight = made(large, 1, device="cuda", memory=memory)
    assert not tight.fits
    assert tight.short == need - int(0.95 * memory)
    way = tight.way_out
    assert way is not None
    assert (way.strategy, way.devices) == ("fsdp2", 2)
    again = made(large, way.devices, way.strategy, device="cuda", memory=memory)
    assert again.fits
    assert again.needed == pytest.approx(way.needed, rel=0.1)
    assert "2 devices with fsdp2 would do" in tight.text()
    none = made(large, 1, device="cuda", memory=10**9)
    assert none.way_out is None
    assert "nor on any number of devices" in none.text()


def test_what_a_run_on_replicas_lacks_is_told_from_one_device(large):
    """DDP's buffers are what is too much."""
    alone, two = (made(large, n, device="cuda", optimizer="sgd").needed for n in (1, 2))
    memory = int((alone + two) / 2 / 0.95)
    way = made(large, 2, device="cuda", memory=memory, optimizer="sgd").way_out
    assert way is not None
    assert (way.strategy, way.devices) == ("single", 1)


def test_memory_that_is_not_known_gives_no_verdict(job):
    found = made(job)
    assert found.as_dict()["devices"]["fits"] is found.fits is None
    assert "give --device-memory" in found.text()


def test_large_models_need_no_weights(large):
    found = made(large, 4, "fsdp2", device="cuda")
    whole = found.plan.model["bytes"]
    assert whole == pytest.approx(2 * 1.88e9, rel=0.01)
    assert items(found, "step")["weights"] == pytest.approx(whole / 4, rel=0.01)


# -- what does not go together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "strategy", "changes", "message"),
    [
        (2, "fsdp", {}, "did you mean 'fsdp2'"),
        (0, "ddp", {}, "at least 1, not 0"),
        (2, "single", {}, "single is one device, not 2"),
        (2, "fsdp2", {"optimizer": "zo_sgd", "share": "directions"}, "directions is for replicas"),
        (2, "fsdp2", {"optimizer": "zo_sgd:engine=batched,rank=1"}, "one pass over whole weights"),
        (2, "fsdp2", {"optimizer": "fozo", "optimizer_args": BATCHED}, "'fozo': engine='batched' runs"),
        (2, "fsdp2", {"optimizer": "sophia:hessian=hutchinson"}, "take hessian='gnb'"),
        (2, "fsdp2", {"lora_rank": 2}, "train them on replicas"),
        (2, "fsdp2", {"base_quantization": "nf4", "lora_rank": 2}, "adapters on a base in shards are not supported"),
        (2, "fsdp2", {"objective": "task_vector"}, "changes whole weights in one shot"),
        (2, "fsdp2", {"objective": "undo"}, "undo changes whole weights before it trains them"),
        (2, "fsdp2", {"objective": "rmu_lat"}, "rmu_lat attacks whole models"),
        (2, "zero3", {}, r"no strategy 'zero3' \(single, ddp, fsdp2\)"),
    ],
)
def test_what_does_not_go_together(job, devices, strategy, changes, message):
    with pytest.raises(UserError, match=message):
        made(job, devices, strategy, **changes)


@pytest.mark.parametrize("wrong", [{"memory": 0}, {"flops": 0.0, "devices": 1}, {"device": "h100"}])
def test_wrong_settings(job, wrong):
    with pytest.raises(UserError, match="letgo plan"):
        made(job, **wrong)


@pytest.mark.parametrize(
    ("devices", "changes", "note"),
    [
        (999, {}, "999 devices, but 4 rows in the forget set: 995 have nothing of their own to do"),
        (4, {"optimizer": "zo_sgd", "share": "directions"}, "4 devices, but 2 evaluations in a step: 2 have nothing"),
        (2, {"objective": "task_vector"}, "every device does the whole of task_vector"),
    ],
)
def test_devices_that_have_nothing_to_do_are_told(job, devices, changes, note):
    """A run takes them all the same."""
    notes = "\n".join(made(job, devices, **changes).plan.notes)
    assert note in notes


def test_devices_that_all_have_something_to_do_are_not_told_of(job):
    assert "nothing of their own" not in "\n".join(made(job, 2).plan.notes)


def test_the_strategy_is_by_default_the_runs_own(job):
    for strategy, devices, planned in (("fsdp2", 2, "fsdp2"), ("auto", 2, "ddp"), ("auto", 1, "single")):
        config = make_config(job | {"strategy": strategy})
        assert plan_devices(config, devices, device="cuda").strategy == planned


def test_the_command(job, tmp_path):
    from letgo.cli import app

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(job))
    run = CliRunner().invoke
    common = ["plan", str(path), "--devices", "4", "--device", "cuda", "--device-memory", "80G"]
    shown = run(app, [*common, "--strategy", "fsdp2"])
    assert shown.exit_code == 0, shown.output
    for part in ("4 devices, fsdp2; each has the following", "does it fit?  yes", "gathered layers"):
        assert part in shown.stdout
    found = json.loads(run(app, [*common, "--json"]).stdout)
    assert found["devices"]["fits"] is True
    assert (found["devices"]["strategy"], found["devices"]["memory"]) == ("ddp", 80 * 10**9)
    assert found["seconds"] == {}
    plain = run(app, ["plan", str(path), "--flops", "1e9", "--json"])
    assert "devices" not in json.loads(plain.stdout)
    assert letgo.plan is plan
