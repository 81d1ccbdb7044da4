"""Quantization to formats that are served: the attack in memory and the file give the same model; in the original's own
format a small update is undone whole; a run that exports is attacked as it was exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

import letgo
from letgo.attacks.displacement import matrices
from letgo.attacks.engine.base import Victim
from letgo.attacks.engine.spec import check_attacks, plan_attack
from letgo.attacks.quantize_served import quantize_gguf, quantize_packed, requantize
from letgo.attacks.relearn import relearn
from letgo.benchmarks import create_benchmark
from letgo.core.errors import UserError
from letgo.models.load import load_model, load_tokenizer
from letgo.runs.results import read_result
from tests import tiny
from tests.once import made_once
from tests.report.test_publish import push

pytest.importorskip("gguf", reason="not installed: pip install 'letgo[gguf]'")
pytest.importorskip("libgguf", reason="not installed: pip install 'letgo[gguf]'")

STEP = 2e-4
"""By so much every weight was moved: a small part of a bin of Q4_1."""


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A model that came as a Q4_1 file, and one unlearned from it by changes smaller than half a bin."""
    folder = made_once(tmp_path_factory, "released", _make_released)
    return folder / "original" / "model-Q4_1.gguf", folder / "unlearned"


def _make_released(folder):
    letgo.export("biographies", "q4_1", folder / "original")
    original = folder / "original" / "model-Q4_1.gguf"
    model = load_model(original)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter += STEP * (2 * torch.randint(0, 2, parameter.shape, generator=noise) - 1)
    model.save_pretrained(folder / "unlearned")
    load_tokenizer(original).save_pretrained(folder / "unlearned")


@pytest.fixture
def victim(released):
    benchmark = create_benchmark("rows", forget=tiny.FORGET, retain=tiny.RETAIN)
    return Victim(released[1], benchmark, original=str(released[0]))


def same(model, other):
    mine, others = model.state_dict(), other.state_dict()
    return all(torch.equal(value, others[key]) for key, value in mine.items())


def test_in_the_models_own_format_a_small_update_is_undone_whole(victim, released):
    attacked = requantize(victim)
    original = load_model(released[0])
    # All but the few weights of which the update led over the middle of a bin.
    left = [
        float((w != o).double().mean())
        for w, o in zip(matrices(attacked.model).values(), matrices(original).values(), strict=True)
    ]
    assert max(left) < 0.02
    assert attacked.did["undone"] > 0.98
    assert attacked.did["carried"] == pytest.approx(0.0, abs=0.05)
    assert attacked.did["bins_per_change"] > 10
    assert attacked.did["types"] == ["Q4_1", "Q8_0"]
    assert len(attacked.layers) == 29
    kept = requantize(victim, rounding="stochastic", seed=1)
    assert kept.did["carried"] == pytest.approx(1.0, abs=0.05)
    assert not same(kept.model, requantize(victim, rounding="stochastic", seed=2).model)


def test_the_original_in_its_own_format_is_itself(victim, released):
    role = replace(victim, directory=released[0], role="original")
    assert same(requantize(role).model, load_model(released[0]))
    assert same(requantize(role, rounding="stochastic").model, load_model(released[0]))


@pytest.mark.parametrize(
    ("type", "rounding"),
    [("q4_k_m", "nearest"), ("q3_k_m", "stochastic"), ("own", "stochastic"), ("fp8", "stochastic")],
)
def test_the_attack_is_the_file(victim, released, tmp_path, type, rounding):
    manifest = letgo.export(released[1], type, tmp_path / "out", rounding=rounding, seed=5, original=str(released[0]))
    if type == "own":
        attacked = requantize(victim, rounding=rounding, seed=5)
    elif type == "fp8":
        pytest.importorskip("compressed_tensors", reason="not installed: pip install 'letgo[packed]'")
        attacked = quantize_packed(victim, format=type, rounding=rounding, seed=5)
    else:
        attacked = quantize_gguf(victim, type=type, rounding=rounding, seed=5)
    assert same(attacked.model, load_model(tmp_path / "out" / manifest["file"]))
    for key in ("displacement", "carried", "undone", "bin", "change"):
        assert attacked.did[key] == pytest.approx(manifest["did"][key], rel=1e-9), key


def test_what_is_refused_before_there_is_a_model(released):
    benchmark = create_benchmark("rows", forget=tiny.FORGET, retain=tiny.RETAIN)
    from_directory = Victim("", benchmark, original="biographies")
    with pytest.raises(UserError, match="on no grid that letgo knows"):
        check_attacks([plan_attack("requantize")], from_directory)
    check_attacks([plan_attack("requantize")], replace(from_directory, original=str(released[0])))
    with pytest.raises(UserError, match="unknown format 'q9'"):
        check_attacks([plan_attack("quantize_gguf:type=q9")])
    with pytest.raises(UserError, match="is not GGUF"):
        check_attacks([plan_attack("quantize_gguf:type=own")])
    with pytest.raises(UserError, match="rounding must be one of"):
        plan_attack("quantize_gguf:rounding=up")


@pytest.fixture(scope="module")
def run(tmp_path_factory, released):
    """A short run on the released model that is exported stochastically to its own format."""

    def make(folder):
        tiny.write_jsonl(folder / "f.jsonl", [{"text": "Where was she born? In a town by the sea."}] * 4)
        tiny.write_jsonl(folder / "r.jsonl", [{"text": "Where does he live? In a house on the hill."}] * 4)
        letgo.unlearn(
            model=str(released[0]),
            forget=str(folder / "f.jsonl"),
            retain=str(folder / "r.jsonl"),
            optimizer="adamw",
            learning_rate=1e-4,
            max_steps=2,
            export={"format": "own", "rounding": "stochastic", "seed": 3},
            attacks=["requantize"],
            output_dir=str(folder / "run"),
        )

    return made_once(tmp_path_factory, "exported", make) / "run"


def test_a_run_exports_and_attacks_what_it_exported(run, released):
    result, manifest = read_result(run), json.loads((run / "export" / "export.json").read_text())
    assert (manifest["format"], manifest["rounding"], manifest["seed"]) == ("own", "stochastic", 3)
    by_name = {attack.name: attack for attack in result.attacks}
    assert list(by_name) == ["requantize", "exported"]
    did = by_name["exported"].did
    assert did["files"] == manifest["files"]
    assert did["carried"] == manifest["did"]["carried"] == pytest.approx(1.0, abs=0.1)
    assert by_name["requantize"].did["carried"] < 0.5
    card = (run / "README.md").read_text()
    assert manifest["file"] in card
    assert manifest["files"][manifest["file"]]["sha256"] in card
    with pytest.raises(UserError, match="there is nothing to resume"):
        letgo.unlearn(letgo.read_config(run / "config.yaml"), resume=True)


def test_the_exported_file_is_pushed_with_the_model_and_its_record_is_not(run):
    pushed = push(run).files
    [file] = (run / "export").glob("*.gguf")
    assert pushed[file.name] == file.read_bytes()
    assert "model.safetensors" in pushed
    assert "export.json" not in pushed


def test_what_was_exported_is_what_is_fine_tuned(run):
    """QLoRA on the exported weights: at a rate of nothing the model is the exported one; the base is never trained."""
    from letgo.attacks.engine.target import open_target
    from letgo.core.progress import Quiet

    settings = {"benchmark": None, "original": None, "limit": None, "dtype": None}
    victim = open_target(run, **settings, reporter=Quiet()).victim()
    [file] = (run / "export").glob("*.gguf")
    idle = relearn(victim, base="exported", steps=1, learning_rate=1e-30, evaluations=0)
    pairs = zip(idle.model.parameters(), load_model(file).parameters(), strict=True)
    assert max(float((left - right).abs().max()) for left, right in pairs) < 1e-20
    assert idle.did["lora_rank"] == 8
    assert idle.did["base"] == "exported"
    taught = relearn(victim, base="exported", lora=2, steps=3, learning_rate=1e-3, evaluations=0)
    assert not same(taught.model, load_model(file))
    embedding = "model.embed_tokens.weight"  # no adapter is on it
    assert torch.equal(taught.model.state_dict()[embedding], load_model(file).state_dict()[embedding])
    bare = Victim(run, victim.benchmark, original=victim.original)
    with pytest.raises(UserError, match="this attack is of a run"):
        relearn(bare, base="exported")


def test_another_export_is_not_held_against_what_the_first_left_of_the_original(run, tmp_path, monkeypatch):
    """Two runs in one process, exported in two formats: the original is rounded anew for the second."""
    import letgo.attacks.quantize_served as module

    other = tmp_path / "run"
    shutil.copytree(run, other)
    shutil.rmtree(other / "export")
    letgo.export(other, "int4", other / "export")
    formats, quantized = [], module._quantized

    def noted(victim, format, *how):
        formats.append(format)
        return quantized(victim, format, *how)

    monkeypatch.setattr(module, "_quantized", noted)
    letgo.attack(run, ["exported"], output=tmp_path / "first")
    letgo.attack(other, ["exported"], output=tmp_path / "second")
    assert formats[-1] == "int4"


def test_an_exported_file_that_was_changed_is_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = next((copy / "export").glob("*.gguf"))
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="is not the file that was exported"):
        letgo.attack(copy, ["exported"])


def test_a_run_that_exported_nothing(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "export")
    with pytest.raises(UserError, match=r"the run exported nothing; give export: in its YAML"):
        letgo.attack(copy, ["exported"])


@pytest.mark.parametrize(
    ("export", "message"),
    [
        ({"format": "q9"}, "unknown format 'q9'"),
        ({"rounding": "nearest"}, "needs a value for format"),
        ({"format": "q8_0", "rounding": "up"}, "rounding must be one of nearest, stochastic, error_feedback"),
        ({"format": "q8_0", "sede": 1}, "has no setting 'sede'"),
    ],
)
def test_an_export_that_can_not_be_is_refused_early(tmp_path, export, message):
    from letgo.training.settings import check_early

    path = tmp_path / "run.yaml"
    path.write_text(f"model: biographies\nbenchmark: biographies\nexport: {json.dumps(export)}\n")
    with pytest.raises(UserError, match=message):
        check_early(path)
    with pytest.raises(UserError, match=message):
        letgo.read_config(path)
