from __future__ import annotations

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import letgo
from letgo.core.errors import NonFiniteLossError, UserError
from letgo.data import ForgetRetainDataset, encode_rows, read_rows
from letgo.objectives import create_objective
from letgo.training import prepare as preparing
from letgo.training.prepare import Circumstances, drawn_retain_rows, take_references
from letgo.training.reference_store import (
    ReferenceKey,
    ReferenceStore,
    config_fingerprint,
    model_fingerprint,
    rows_fingerprint,
    tokenizer_fingerprint,
)
from tests import tiny

KEY = ReferenceKey("m", "d", "t", "plain", 64, "float32", "hidden")
ROWS = [torch.arange(6.0).reshape(3, 2), torch.zeros(0, 2), torch.full((1, 2), 9.0)]


def write(store, key=KEY, rows=ROWS):
    with store.writer(key) as writer:
        for row in rows:
            writer.append(row)
    return store.directory / key.file


def test_rows_come_back_as_they_were(tmp_path):
    store = ReferenceStore(tmp_path)
    assert store.read(KEY) is None
    path = write(store)
    found = store.read(KEY)
    assert len(found) == 3
    assert all(torch.equal(one, other) for one, other in zip(found, ROWS, strict=True))
    assert load_file(path)["values"].shape == (4, 2), "a plain safetensors file"
    logps = dataclasses.replace(KEY, quantity="logps")
    write(store, logps, [torch.tensor(-1.5), torch.tensor(2.5)])
    assert [row.shape for row in store.read(logps)] == [(), ()]
    assert [float(row) for row in store.read(logps)] == [-1.5, 2.5]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_floating_type_is_kept(tmp_path, dtype):
    store = ReferenceStore(tmp_path)
    row = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    write(store, rows=[row])
    assert store.read(KEY)[0].dtype == dtype
    assert torch.equal(store.read(KEY)[0], row)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ReferenceKey)])
def test_another_value_of_any_part_of_the_key_is_another_file(tmp_path, field):
    store = ReferenceStore(tmp_path)
    write(store)
    changed = dataclasses.replace(KEY, **{field: 7 if field in ("max_length", "layer") else "other"})
    assert changed.file != KEY.file
    assert store.read(changed) is None
    (store.directory / KEY.file).rename(store.directory / changed.file)
    assert store.read(changed) is None, "a file under another's name is not believed"


def test_a_broken_file_is_removed(tmp_path):
    store = ReferenceStore(tmp_path)
    path = write(store)
    whole = path.read_bytes()
    for broken in (whole[:-3], whole[:20], b"", whole[:-1] + bytes([whole[-1] ^ 1]), b"x"):
        path.write_bytes(broken)
        assert store.read(KEY) is None
        assert not path.exists()
    middle = bytearray(whole)
    middle[8 + 4096 + 3] ^= 1  # one bit of one value
    path.write_bytes(middle)
    assert store.read(KEY) is None


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    store = ReferenceStore(tmp_path)

    def rows():
        yield ROWS[0]
        raise RuntimeError("the power")

    with pytest.raises(RuntimeError):
        write(store, rows=rows())
    assert list(tmp_path.iterdir()) == []


def test_the_store_keeps_to_its_limit_and_removes_the_longest_unused_first(tmp_path):
    keys = [dataclasses.replace(KEY, data=str(number)) for number in range(4)]
    size = write(ReferenceStore(tmp_path / "probe")).stat().st_size
    store = ReferenceStore(tmp_path / "store", limit=int(3.5 * size))
    for age, key in zip((30, 20, 10), keys, strict=False):
        path = write(store, key)
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    assert store.read(keys[0]) is not None  # used: now the youngest
    write(store, keys[3])
    kept = [key.data for key in keys if (store.directory / key.file).exists()]
    assert kept == ["0", "2", "3"]
    tiny_store = ReferenceStore(tmp_path / "store", limit=1)
    path = write(tiny_store, KEY)
    assert [p.name for p in tiny_store.directory.iterdir()] == [path.name], "the newest stays, whatever its size"


def test_limits_and_places_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LETGO_REFERENCES_GB", "0.5")
    assert ReferenceStore().limit == 500_000_000
    for wrong in ("much", "-1", "nan", "0"):
        monkeypatch.setenv("LETGO_REFERENCES_GB", wrong)
        with pytest.raises(UserError, match="LETGO_REFERENCES_GB is"):
            ReferenceStore()
    monkeypatch.delenv("LETGO_REFERENCES_GB")
    monkeypatch.delenv("LETGO_REFERENCES")
    monkeypatch.setenv("LETGO_CACHE", str(tmp_path))
    assert ReferenceStore().directory == tmp_path / "references"
    (tmp_path / "file").touch()
    monkeypatch.setenv("LETGO_REFERENCES", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="can't be written to"):
        write(ReferenceStore())


def _write_many(directory: str, number: int) -> None:
    store = ReferenceStore(Path(directory))
    for _ in range(20):
        write(store)
        found = store.read(KEY)
        assert found is not None
        assert torch.equal(found[0], ROWS[0])


def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_many, args=(str(tmp_path), n)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [KEY.file]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read as Linux counts it")
def test_reading_and_writing_take_little_memory(tmp_path):
    """240 MB through a process of its own, which must not grow by a third of that."""
    script = """
        import sys, torch
        from pathlib import Path
        from tests.training.test_reference_store import KEY
        from letgo.training.reference_store import ReferenceStore
        def resident(kind):
            lines = open("/proc/self/status").read().splitlines()
            return sum(int(l.split()[1]) for l in lines if l.startswith(kind)) * 1024
        store = ReferenceStore(Path(sys.argv[1]))
        before = resident("VmRSS")
        with store.writer(KEY) as writer:
            for number in range(60):
                writer.append(torch.full((1000, 1000), float(number)))
        print(resident("VmRSS") - before)
        before = resident("RssAnon")
        found = store.read(KEY)
        assert float(found[59][0, 0]) == 59.0
        print(resident("RssAnon") - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    writing, reading = map(int, done.stdout.split())
    assert writing < 80e6
    assert reading < 30e6


# -- what the keys are made of -----------------------------------------------------------------------------------------


def test_a_models_fingerprint_changes_with_any_weight_and_any_setting_that_counts():
    model = tiny.make_model()
    start = model_fingerprint(model)
    assert model_fingerprint(tiny.make_model()) == start
    assert model_fingerprint(tiny.make_model(seed=1)) != start
    assert model_fingerprint(tiny.make_model(rms_norm_eps=1e-3)) != start, "the same weights, another model"
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    assert model_fingerprint(model) != start
    model.config._name_or_path = "elsewhere"
    assert config_fingerprint(model.config) == config_fingerprint(tiny.make_model().config)


def test_adapters_do_not_count_in_a_models_fingerprint():
    peft = pytest.importorskip("peft")
    start = model_fingerprint(tiny.make_model())
    adapted = peft.get_peft_model(tiny.make_model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert model_fingerprint(adapted) == start


def test_a_quantized_models_scales_count(tmp_path):
    pytest.importorskip("bitsandbytes")
    from letgo.models.load import load_model

    model = tiny.make_model(hidden_size=64, intermediate_size=128)
    found = set()
    for scale in (1.0, 2.0):  # the same codes, other scales
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(scale)
        model.save_pretrained(tmp_path)
        found.add(model_fingerprint(load_model(tmp_path, quantization="nf4")))
    assert len(found) == 2


def test_fingerprints_of_rows_and_tokenizers(tokenizer):
    rows = encode_rows(tokenizer, read_rows(tiny.FORGET), max_length=64)[0]
    assert rows_fingerprint(rows) == rows_fingerprint(list(rows))
    assert rows_fingerprint(rows) != rows_fingerprint(rows[::-1])
    relabelled = [dataclasses.replace(row, labels=row.input_ids) for row in rows]
    assert rows_fingerprint(rows) != rows_fingerprint(relabelled)
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(tiny.make_tokenizer())
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(tiny.make_tokenizer(bos=False))


# -- in use ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tokenizer):
    forget, kept = (encode_rows(tokenizer, read_rows(rows), max_length=64)[0] for rows in (tiny.FORGET, tiny.RETAIN))
    return ForgetRetainDataset(forget, kept, seed=3)


def take(model, dataset, objective, store, **more):
    objective.prepare(model)
    take_references(model, dataset, objective, pad_id=0, store=store, circumstances=Circumstances("t"), **more)
    return {part: {name: list(rows) for name, rows in found.items()} for part, found in dataset.reference.items()}


@pytest.mark.parametrize("name", ["npo_gdr", "npo_klr", "undial", "rmu"])
def test_a_second_run_computes_nothing(tmp_path, dataset, monkeypatch, name):
    store = ReferenceStore(tmp_path)
    objective = create_objective(name)
    assert objective.reference
    first = take(tiny.make_model(), dataset, objective, store)
    memory = take(tiny.make_model(), dataset, objective, None)
    monkeypatch.setattr(preparing, "reference_quantities", lambda *_, **__: pytest.fail("computed again"))
    second = take(tiny.make_model(), dataset, objective, store)
    for part, names in objective.reference.items():
        for quantity in names:
            for one, other, third in zip(
                first[part][quantity], second[part][quantity], memory[part][quantity], strict=True
            ):
                assert torch.equal(one, other)
                assert torch.equal(one, third)
    with pytest.raises(pytest.fail.Exception):
        take(tiny.make_model(seed=1), dataset, objective, store)


def test_a_broken_file_is_computed_anew(tmp_path, dataset):
    store = ReferenceStore(tmp_path)
    first = take(tiny.make_model(), dataset, create_objective("npo"), store)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    second = take(tiny.make_model(), dataset, create_objective("npo"), store)
    assert torch.equal(torch.stack(first["forget"]["logps"]), torch.stack(second["forget"]["logps"]))
    assert path.is_file()


def test_only_retain_rows_that_are_drawn_are_looked_at(tmp_path, dataset, tokenizer):
    many = [{"text": f"{a} {b}"} for a in tiny.WORDS[8:16] for b in tiny.WORDS[16:20]]
    kept = encode_rows(tokenizer, read_rows(many), max_length=64)[0]
    large = ForgetRetainDataset(dataset.forget, kept, seed=3)
    drawn = drawn_retain_rows(large, 2)
    assert len(drawn) == 8
    assert large.epoch == 0
    objective = create_objective("npo_klr")
    objective.prepare(tiny.make_model())
    take_references(tiny.make_model(), large, objective, pad_id=0, epochs=2)
    some = large.reference["retain"]["hidden"]
    with pytest.raises(KeyError):
        some[next(place for place in range(len(kept)) if place not in drawn)]
    for epoch in range(2):
        large.set_epoch(epoch)
        for index in range(len(large)):
            assert large[index]["reference"]["retain"]["hidden"].shape[1] == 32
    large.set_epoch(0)
    take_references(tiny.make_model(), large, objective, pad_id=0)
    whole = large.reference["retain"]["hidden"]
    for place in drawn:
        torch.testing.assert_close(some[place], whole[place])


def test_a_reference_that_is_not_finite_stops_the_run_and_stores_nothing(tmp_path, dataset):
    model = tiny.make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="logps"):
        take(model, dataset, create_objective("npo"), ReferenceStore(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_whole_runs_share_the_store(tmp_path, model_directory, monkeypatch):
    monkeypatch.setenv("LETGO_REFERENCES", str(tmp_path / "references"))
    job = {
        "model": str(model_directory),
        "forget": str(tiny.write_jsonl(tmp_path / "forget.jsonl", tiny.FORGET)),
        "retain": str(tiny.write_jsonl(tmp_path / "retain.jsonl", tiny.RETAIN)),
        "objective": "npo_klr",
        "max_steps": 2,
        "eval_limit": 1,
        "use_cpu": True,
    }
    letgo.unlearn(**job, output_dir=str(tmp_path / "one"))
    stored = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "references").iterdir()}
    assert sorted(name.partition("-")[0] for name in stored) == ["hidden", "logps"]
    monkeypatch.setattr(preparing, "reference_quantities", lambda *_, **__: pytest.fail("computed again"))
    run = letgo.unlearn(**job, output_dir=str(tmp_path / "two"), optimizer="sign_adam", learning_rate=1e-4)
    assert run.result.seconds["unlearn"] > 0
    assert {path.name for path in (tmp_path / "references").iterdir()} == set(stored)
    assert not list((tmp_path / "two").glob("*reference*"))
