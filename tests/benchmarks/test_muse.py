"""MUSE on data of its shape: prompts, cuts, chunks and PrivLeak against plain versions; the whole path offline."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from sklearn.metrics import roc_auc_score

import letgo
from letgo.benchmarks import create_benchmark
from letgo.benchmarks.engine.items import Sample
from letgo.benchmarks.muse.muse import CORPORA, SEQUENCES
from letgo.core.errors import UserError
from letgo.core.files import read_json_lines
from letgo.runs.results import read_result
from tests import shaped, tiny
from tests.reference import tofu as reference

QUICK = "general=false"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shaped.write_muse(tmp_path_factory.mktemp("muse"))


@pytest.fixture(scope="module")
def tokenizer():
    return shaped.tokenizer()


def made(tokenizer, seed=0, **changes):
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "tie_word_embeddings": False}
    return tiny.make_model(seed, **(settings | changes))


@pytest.fixture(scope="module")
def model(tokenizer):
    return made(tokenizer)


@pytest.fixture(scope="module")
def directories(tokenizer, tmp_path_factory):
    return [tiny.save(tmp_path_factory.mktemp("model"), made(tokenizer, seed), tokenizer) for seed in (0, 1)]


def rows_of(data, name):
    return [json.loads(line) for line in (data / f"{name}.json").read_text().splitlines()]


# -- data and tokens ---------------------------------------------------------------------------------------------------


def test_what_is_trained_on_and_scored(data):
    benchmark = create_benchmark(f"muse:data={data}")
    assert [row.target for row in benchmark.forget] == [row["text"] for row in rows_of(data, "raw/forget")]
    assert [row.target for row in benchmark.retain] == [row["text"] for row in rows_of(data, "raw/retain1")]
    counts = {(thing.set, thing.task): 0 for thing in (*benchmark.items, *benchmark.texts)}
    for thing in (*benchmark.items, *benchmark.texts):
        counts[thing.set, thing.task] += 1
    assert counts.pop(("general", "")) == 32
    assert counts == {
        ("forget", "verbmem"): 6,
        ("forget", "knowmem"): 6,
        ("retain", "knowmem"): 6,
        ("forget", "privleak"): 6,
        ("retain", "privleak"): 6,
        ("holdout", "privleak"): 6,
    }
    said = "\n".join(benchmark.notes)
    assert "verbmem/forget has 6 rows here and 100 on the hub" in said
    assert "published for Llama-2-7B retrained (0.4772)" in said
    few = create_benchmark(f"muse:data={data},limit=2,train_limit=1,{QUICK},retain=retain2")
    assert (len(few.forget), len(few.retain), len(few.items), len(few.texts)) == (1, 1, 6, 6)
    assert few.retain[0].target == rows_of(data, "raw/retain2")[0]["text"]


def test_muse_makes_its_target_models(data):
    plain = create_benchmark(f"muse:data={data},{QUICK}")
    full = create_benchmark("muse", data=str(data), general=False, learn="full")
    retain = create_benchmark("muse", data=str(data), general=False, learn="retain")
    assert full.forget == retain.forget == []
    assert [row.target for row in full.retain] == [row.target for row in (*plain.retain, *plain.forget)]
    assert [row.target for row in retain.retain] == [row.target for row in plain.retain]
    assert any("none to be forgotten (learn=full)" in note for note in full.notes)
    assert full.settings["learn"] == "full"
    with pytest.raises(UserError, match="learn must be one of full, retain"):
        create_benchmark("muse", data=str(data), general=False, learn="all")
    with pytest.raises(UserError, match="stands for four runs"):
        create_benchmark("muse", data=str(data), general=False, request="sust", learn="full")


def test_requests_are_the_larger_and_the_later_forget_sets(data):
    for kind in ("scal", "sust"):
        for number in range(1, 5):
            benchmark = create_benchmark(f"muse:data={data},request={kind}_{number}")
            assert [row.target for row in benchmark.forget] == [
                row["text"] for row in rows_of(data, f"{kind}/forget_{number}")
            ]
            assert not benchmark.sequence
        whole = create_benchmark(f"muse:data={data},request={kind},{QUICK}")
        assert [f"request={one}" in spec for one, spec in zip(SEQUENCES[kind], whole.sequence, strict=True)] == [
            True
        ] * 4
        assert all("general=False" in spec or "general=false" in spec for spec in whole.sequence)
        assert whole.chained == (kind == "sust")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpus": "new"}, "did you mean 'news'"),
        ({"request": "sust_5"}, "request is 'sust_5'; known: scal, .*, sust_4; did you mean 'sust_4'"),
        ({"corpus": "books", "request": "scal_1"}, "is of the news corpus"),
        ({"retain": "retain3"}, "known: retain1, retain2"),
        ({"limit": 0}, "at least 1"),
        ({"retrain": "nowhere"}, "no such directory"),
    ],
)
def test_bad_settings(data, settings, message):
    with pytest.raises(UserError, match=message):
        create_benchmark("muse", **{"data": str(data)} | settings)


def test_a_table_that_lacks_something_names_its_place(data, tmp_path):
    folder = shaped.write_muse(tmp_path)
    (folder / "verbmem/forget.json").write_text('{"prompt": "In Harrow", "gt": ""}\n')
    with pytest.raises(UserError, match=r"forget.json:1: field 'gt' is empty"):
        create_benchmark(f"muse:data={folder}")
    (folder / "verbmem/forget.json").unlink()
    with pytest.raises(UserError, match="no table 'verbmem/forget'"):
        create_benchmark(f"muse:data={folder}")


@pytest.mark.parametrize("length", [16, 50, 4000])
def test_chunks_are_cut_as_stated(data, tokenizer, length):
    benchmark = create_benchmark(f"muse:data={data}")
    encoded, [said] = benchmark.encode(tokenizer, benchmark.forget, max_length=length, name="forget set")
    text = "\n\n".join(row["text"] for row in rows_of(data, "raw/forget"))
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    size = min(length, 2048) - 1
    expected = [[tokenizer.bos_token_id, *tokens[at : at + size]] for at in range(0, len(tokens), size)]
    if len(expected) > 1:
        expected[-1] = (expected[-1] + expected[0])[: size + 1]
    assert [row.input_ids for row in encoded] == expected
    assert all(row.labels == row.input_ids for row in encoded)
    assert f"6 texts as {len(expected)} chunks" in said
    again = [token for row in encoded for token in row.input_ids[1:]]
    assert again[: len(tokens)] == tokens, "no token of the texts is lost"


def test_alternatives_stand_behind_the_start_token(data, tokenizer):
    benchmark = create_benchmark(f"muse:data={data}")
    encoded, _ = benchmark.encode(tokenizer, benchmark.forget, max_length=32)
    other = benchmark.encode_alternatives(tokenizer, encoded, ["a heron"] * len(encoded), max_length=32)
    heron = tokenizer("a heron", add_special_tokens=False)["input_ids"]
    assert {tuple(row.input_ids) for row in other} == {(tokenizer.bos_token_id, *heron)}


def test_a_tokenizer_without_a_start_token_is_told_of(data):
    tokenizer = shaped.tokenizer(bos=False)
    tokenizer.bos_token = None
    benchmark = create_benchmark(f"muse:data={data},limit=1,{QUICK}")
    said = "\n".join(benchmark.notes_for(tokenizer))
    assert "chunks to train on begin without one" in said
    assert "its first token is not scored" in said
    encoded, _ = benchmark.encode(tokenizer, benchmark.forget, max_length=16)
    assert encoded[0].input_ids == tokenizer(benchmark.forget[0].target)["input_ids"][:15]
    samples = benchmark.samples(made(tokenizer), tokenizer)
    text = rows_of(data, "privleak/forget")[0]["text"]
    found = next(s for s in samples if s.id == "privleak/forget/0").scores["min_k"]
    assert -found == pytest.approx(reference.muse_min_k(made(tokenizer), tokenizer, text), rel=1e-5)


def test_texts_beyond_the_context_are_refused(data, tokenizer):
    small = made(tokenizer, max_position_embeddings=64)
    with pytest.raises(UserError, match=r"tokens, prompt and answer, but the model's context is 64"):
        create_benchmark(f"muse:data={data}").work(small, tokenizer)


# -- scores ------------------------------------------------------------------------------------------------------------


def test_scores_equal_plain_loops_over_rows(model, tokenizer, data):
    benchmark = create_benchmark(f"muse:data={data},limit=3,{QUICK}")
    samples = {s.id: s for s in benchmark.samples(model, tokenizer)}
    assert len(samples) == 18
    for name in ("forget", "retain"):
        examples = rows_of(data, f"knowmem/{name}_qa_icl")
        assert len(examples) == 10
        for number, row in enumerate(rows_of(data, f"knowmem/{name}_qa")[:3]):
            found = samples[f"knowmem/{name}_qa/{number}"].scores["knowmem"]
            assert found == pytest.approx(reference.muse_knowledge(model, tokenizer, row, examples))
    for number, row in enumerate(rows_of(data, "verbmem/forget")[:3]):
        found = samples[f"verbmem/forget/{number}"].scores["verbmem"]
        assert found == pytest.approx(reference.muse_verbatim(model, tokenizer, row))
    for name in ("forget", "retain", "holdout"):
        for number, row in enumerate(rows_of(data, f"privleak/{name}")[:3]):
            found = samples[f"privleak/{name}/{number}"].scores["min_k"]
            assert -found == pytest.approx(reference.muse_min_k(model, tokenizer, row["text"]), rel=1e-5)
    metrics = benchmark.summarise(samples.values())
    assert set(metrics) == {
        "forget_verbmem",
        "forget_knowmem",
        "retain_knowmem",
        "forget_privleak",
        "forget_membership_auc",
        "retain_membership_auc",
    }
    knowledge = [samples[f"knowmem/retain_qa/{n}"].scores["knowmem"] for n in range(3)]
    assert metrics["retain_knowmem"].value == pytest.approx(sum(knowledge) / 3)
    assert metrics["forget_privleak"].n == 6


def text_samples(forget, holdout):
    """Samples with published-style scores: the negative mean of the least likely tokens, small where familiar."""
    sets = {"forget": forget, "holdout": holdout}
    return [
        Sample(name, f"privleak/{name}/{n}", f"{name}/{n}", {"min_k": -score})
        for name, scores in sets.items()
        for n, score in enumerate(scores)
    ]


@pytest.mark.parametrize(("corpus", "upper"), [("news", 109.556), ("books", 85.426)])
def test_privleaks_bounds(data, corpus, upper):
    benchmark = create_benchmark("muse", corpus=corpus, data=str(data))
    known, new = [0.1 * n for n in range(100)], [100 + 0.1 * n for n in range(100)]
    remembered = benchmark.summarise(text_samples(known, new))["forget_privleak"]
    assert (remembered.value, remembered.n) == (-100.0, 200)
    over = benchmark.summarise(text_samples(new, known))["forget_privleak"]
    assert over.value == pytest.approx(upper, abs=5e-4)


def test_privleak_worked_through():
    """Forget 1, 2, 6 and holdout 3, 4, 5: of nine pairs the holdout text scores higher in six, so the published AUC is
    roc_auc([0,0,0,1,1,1], −score) = 1 − 6/9 = 1/3, and PrivLeak = 100·(1/3 − .4772)/.4772 = −30.148."""
    forget, holdout = [1.0, 2.0, 6.0], [3.0, 4.0, 5.0]
    auc = roc_auc_score([0] * 3 + [1] * 3, [-score for score in forget + holdout])
    assert auc == pytest.approx(1 / 3)
    from letgo.benchmarks.muse.scores import muse_metrics

    found = muse_metrics(text_samples(forget, holdout), CORPORA["news"], None)["forget_privleak"]
    assert found.value == pytest.approx(100 * (1 / 3 - 0.4772) / 0.4772)
    assert found.value == pytest.approx(-30.148, abs=1e-3)
    draw = random.Random(3)
    forget, holdout = ([draw.gauss(mean, 1) for _ in range(60)] for mean in (1.0, 1.4))
    auc = roc_auc_score([0] * 60 + [1] * 60, [-score for score in forget + holdout])
    found = muse_metrics(text_samples(forget, holdout), CORPORA["books"], None)["forget_privleak"]
    assert found.value == pytest.approx(100 * (auc - 0.5393) / 0.5393)
    assert found.ci95[0] < found.value < found.ci95[1]


def test_the_retrained_models_own_auc_takes_the_published_ones_place(directories, data, tmp_path):
    letgo.evaluate(directories[1], [f"muse:data={data},{QUICK}"], output=tmp_path / "retrained")
    spec = f"muse:data={data},{QUICK},retrain={tmp_path / 'retrained'}"
    [result] = letgo.evaluate(directories[0], [spec], output=tmp_path / "out").values()
    aucs = []
    for place in ("out", "retrained"):
        rows = [r for r in read_json_lines(tmp_path / place / "samples.jsonl") if r["id"].startswith("privleak")]
        rows = [r for r in rows if r["set"] in ("forget", "holdout")]
        aucs.append(roc_auc_score([r["set"] == "holdout" for r in rows], [r["scores"]["min_k"] for r in rows]))
    assert result.after["forget_privleak"].value == pytest.approx(100 * (aucs[0] - aucs[1]) / aucs[1])
    assert result.references["retrained"] == read_result(tmp_path / "retrained").after
    [same] = letgo.evaluate(directories[1], [spec]).values()
    assert same.after["forget_privleak"].value == 0.0
    books = tmp_path / "retrained" / "result.json"
    books.write_text(books.read_text().replace('"corpus": "news"', '"corpus": "books"'))
    with pytest.raises(UserError, match="its corpus is 'books', here it is 'news'"):
        create_benchmark(spec)


# -- the whole path ----------------------------------------------------------------------------------------------------


def test_unlearn_eval_report_offline(directories, data, whole_path):
    result, _, printed = whole_path(directories[0], f"muse:data={data},limit=2", "graddiff", "--set", "max_length=32")
    assert result.before["forget_verbmem"].n == 2
    assert {"forget_knowmem", "forget_privleak", "retain_knowmem", "general_perplexity"} <= set(result.after)
    assert result.config["scored"]["corpus"] == "news"
    assert any("chunks of 32 tokens" in note for note in result.notes)
    assert "forget_privleak" in printed
    assert "published for Llama-2-7B retrained" in printed


def test_requests_one_after_another(directories, data, tmp_path, command):
    spec = f"muse:data={data},request=sust,limit=1,{QUICK}"
    common = ["--objective", "graddiff", "--lr", "1e-3", "--steps", "1", "--batch-size", "1", "--quiet"]
    more = ["--set", "max_length=32", "--set", "use_cpu=true", "--output", tmp_path / "out"]
    told = command("unlearn", "--model", directories[0], "--benchmark", spec, *common, *more, "--json")
    places = [tmp_path / "out" / f"{n}-sust_{n}" for n in range(1, 5)]
    assert list(json.loads(told)) == [str(place) for place in places]
    results = [read_result(place) for place in places]
    assert [result.config["model"] for result in results] == [str(directories[0]), *map(str, places[:3])]
    assert [f"request=sust_{n}" in r.config["benchmark"] for n, r in enumerate(results, 1)] == [True] * 4
    for one, next_one in itertools.pairwise(results):
        assert {k: m.value for k, m in one.after.items()} == pytest.approx(
            {k: m.value for k, m in next_one.before.items()}, rel=1e-4, abs=1e-6
        )
    # Cut off after the second request: what is finished is kept, to the byte.
    import shutil

    kept = (places[1] / "result.json").read_bytes()
    for place in places[2:]:
        shutil.rmtree(place)
    settings = {"model": str(directories[0]), "benchmark": spec, "output_dir": str(tmp_path / "out")}
    settings |= {"objective": "graddiff", "learning_rate": 1e-3, "max_steps": 1, "per_device_train_batch_size": 1}
    settings |= {"max_length": 32, "use_cpu": True}
    with pytest.raises(UserError, match="resume it with --resume"):
        letgo.unlearn_sequence(**settings)
    done = letgo.unlearn_sequence(**settings, resume=True)
    assert list(done) == places
    assert (places[1] / "result.json").read_bytes() == kept
    assert done[places[3]].after == results[3].after
    # What is asked for after the records, and is missing there, is made.
    done = letgo.unlearn_sequence(**settings, attacks=["quantize:bits=8"], resume=True)
    assert [[attack.label for attack in result.attacks] for result in done.values()] == [["quantize:bits=8"]] * 4
    assert done[places[3]].after == results[3].after
    with pytest.raises(UserError, match="stands for 4 requests"):
        letgo.unlearn(**settings | {"output_dir": str(tmp_path / "one")})
    with pytest.raises(UserError, match="is no sequence of requests"):
        letgo.unlearn_sequence(**settings | {"benchmark": f"muse:data={data}"})


@pytest.mark.parametrize("kind", ["scal", "sust"])
def test_growing_requests_start_from_one_model_and_repeated_ones_go_on(data, tmp_path, monkeypatch, kind):
    """Which model each request is given; nothing is trained here."""
    from types import SimpleNamespace

    import letgo.training.requests as sequence

    given = []

    def unlearn(config, **_):
        given.append((config.model, config.benchmark, config.output_dir))
        return SimpleNamespace(result=config.output_dir)

    monkeypatch.setattr(sequence, "unlearn", unlearn)
    output = tmp_path / "out"
    settings = {"objective": "graddiff", "benchmark": f"muse:data={data},request={kind},{QUICK}"}
    done = letgo.unlearn_sequence(model="somebody/model", output_dir=str(output), **settings)
    places = [str(output / f"{n}-{kind}_{n}") for n in range(1, 5)]
    assert [str(place) for place in done] == [place for _, _, place in given] == places
    assert all(f"request={kind}_{n}" in spec for n, (_, spec, _) in enumerate(given, 1))
    first = "somebody/model"
    assert [model for model, _, _ in given] == ([first] * 4 if kind == "scal" else [first, *places[:3]])
