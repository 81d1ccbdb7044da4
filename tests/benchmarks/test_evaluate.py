"""`letgo eval`: several benchmarks in one pass, and going on after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil

import pytest

import letgo
import letgo.benchmarks.engine.requests as work
from letgo.benchmarks import BENCHMARKS, create_benchmark
from letgo.benchmarks.engine.evaluate import PARTIAL_FILE
from letgo.benchmarks.engine.requests import Ask, run_works
from letgo.core.errors import EmptyScoreError, UserError
from letgo.core.files import read_json_lines
from letgo.core.progress import Quiet
from letgo.models.load import load_model
from letgo.runs.results import ON_TRAINED_ROWS, read_result
from letgo.scoring.scoring import Query, ResumeLog
from tests import shaped, tiny

LENGTH = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {"tofu": shaped.write_tofu(folder / "tofu"), "muse": shaped.write_muse(folder / "muse")}


@pytest.fixture(scope="module")
def specs(data):
    return [
        f"tofu:split=forget01,length={LENGTH},general=false,limit=3,data={data['tofu']}",
        f"muse:general=false,limit=3,data={data['muse']}",
    ]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"))


def saved(folder, seed=0):
    tokenizer = shaped.tokenizer()
    return tiny.save(folder, tiny.make_model(seed, vocab_size=len(tokenizer), max_position_embeddings=512), tokenizer)


def settings_on(directory, spec):
    """Those of a run of one step."""
    return {
        "model": str(directory),
        "benchmark": spec,
        "objective": "graddiff",
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
    }


def values(result):
    return {name: metric.value for name, metric in result.after.items()}


def counted(monkeypatch):
    """How many queries and prompts the engine is asked."""
    asked = {"queries": 0, "prompts": 0}
    score, generate = work.score, work.generate

    def counting_score(model, queries, **more):
        asked["queries"] += len(queries)
        return score(model, queries, **more)

    def counting_generate(model, tokenizer, prompts, **more):
        asked["prompts"] += len(prompts)
        return generate(model, tokenizer, prompts, **more)

    monkeypatch.setattr(work, "score", counting_score)
    monkeypatch.setattr(work, "generate", counting_generate)
    return asked


def test_several_benchmarks_in_one_pass_score_as_each_alone(directory, specs, tmp_path):
    both = letgo.evaluate(directory, specs, output=tmp_path / "both")
    for spec, result in both.items():
        [alone] = letgo.evaluate(directory, [spec]).values()
        assert values(result) == pytest.approx(values(alone), rel=1e-5)
        name = spec.partition(":")[0]
        assert read_result(tmp_path / "both" / name).after == result.after
        assert result.config["scored"]["benchmark"] == name
        assert result.headlines == {h.metric: h.floor for h in BENCHMARKS.record(name).headlines}
        assert len(result.headlines) == 2
        assert any("evaluated in one pass with" in note for note in result.notes)
        rows = read_json_lines(tmp_path / "both" / name / "samples.jsonl")
        assert len(rows) == {"tofu": 12, "muse": 18}[name]
        assert all(row["scores"] for row in rows)
    assert not (tmp_path / "both" / PARTIAL_FILE).exists()


def test_what_two_benchmarks_share_is_run_once(directory, data, monkeypatch):
    asked = counted(monkeypatch)
    spec = f"tofu:split=forget01,length={LENGTH},general=false,data={data['tofu']}"
    letgo.evaluate(directory, [f"{spec},limit=3"])
    once = dict(asked)
    assert once == {"queries": 12, "prompts": 12}
    results = letgo.evaluate(directory, [f"{spec},limit=3", f"{spec},limit=2"])
    assert asked == {name: 2 * count for name, count in once.items()}, "the smaller one is within the larger"
    for limit, result in zip((3, 2), results.values(), strict=True):
        assert result.after["forget_probability"].n == limit


def test_equal_work_is_scored_once_and_progress_adds_up(directory):
    tokenizer, model = shaped.tokenizer(), load_model(directory)
    seen = []
    query, ask = Query([1, 5], [[6, 7], [8]]), Ask([1, 5], 3)
    other = Ask([1, 5], 3, stop=("Question",))

    def keep(scored, generated, advance):
        seen.append((scored, generated))
        return []

    one = work.Work(keep, [query, query], [ask])
    two = work.Work(keep, [query], [ask, other])
    steps = []
    run_works(model, tokenizer, [one, two], advance=steps.append)
    assert sum(steps) == one.size + two.size == 6
    assert seen[0][0][0] is seen[0][0][1] is seen[1][0][0]
    assert seen[0][1][0] is seen[1][1][0]
    assert len(seen[1][1]) == 2


class Killed(Quiet):
    """Progress that stops the process, so to speak, after some steps."""

    def __init__(self, after):
        self.left = after

    def task(self, name, total):
        killed = self

        @contextlib.contextmanager
        def running():
            class Task:
                def advance(self, steps=1):
                    killed.left -= steps
                    if killed.left < 0:
                        raise KeyboardInterrupt

                def describe(self, text):
                    pass

            yield Task()

        return running()


@pytest.mark.parametrize("after", [5, 16])
def test_an_evaluation_goes_on_after_a_kill(directory, specs, tmp_path, after):
    whole = letgo.evaluate(directory, specs, output=tmp_path / "whole")
    output = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        letgo.evaluate(directory, specs, output=output, reporter=Killed(after))
    finished = (output / PARTIAL_FILE).read_text().count("\n") - 1
    assert finished >= after
    with pytest.raises(UserError, match="go on with --resume"):
        letgo.evaluate(directory, specs, output=output)
    with (output / PARTIAL_FILE).open("a") as file:
        file.write('{"key": "half a li')
    resumed = letgo.evaluate(directory, specs, output=output, resume=True)
    assert {spec: result.after for spec, result in resumed.items()} == {s: r.after for s, r in whole.items()}
    assert not (output / PARTIAL_FILE).exists()
    for name in ("tofu", "muse"):
        assert (output / name / "samples.jsonl").read_bytes() == (
            tmp_path / "whole" / name / "samples.jsonl"
        ).read_bytes()


def test_another_models_scores_are_not_gone_on_with(directory, specs, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        letgo.evaluate(directory, specs, output=tmp_path / "out", reporter=Killed(5))
    with pytest.raises(UserError, match="differs in 'weights'"):
        letgo.evaluate(saved(tmp_path / "other", seed=7), specs, output=tmp_path / "out", resume=True)


def test_a_limit_beyond_what_there_is_is_said(directory, tmp_path):
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", shaped_rows())
    [result] = letgo.evaluate(directory, [f"rows:forget={rows}"], limit=10).values()
    assert "rows: limit 10 was asked, but forget has 4: all are scored" in result.notes
    assert result.after["forget_probability"].n == 4
    [few] = letgo.evaluate(directory, [f"rows:forget={rows}"], limit=2).values()
    assert few.notes == [ON_TRAINED_ROWS]


def shaped_rows():
    return [
        {"question": shaped.tofu_row(0, n)["question"], "answer": shaped.tofu_row(0, n)["answer"]} for n in range(4)
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"limit": 0}, "limit must be a whole number of at least 1"),
        ({"resume": True}, "give the output directory"),
        ({"dtype": "int4"}, "unknown dtype"),
    ],
)
def test_bad_calls(directory, specs, more, message):
    with pytest.raises(UserError, match=message):
        letgo.evaluate(directory, specs, **more)


def test_bad_benchmarks(directory, specs):
    with pytest.raises(UserError, match="named twice"):
        letgo.evaluate(directory, [specs[0], specs[0]])
    with pytest.raises(UserError, match="no benchmark named"):
        letgo.evaluate(directory, [])
    empty = create_benchmark("rows", forget=shaped_rows()[:1])
    with pytest.raises(EmptyScoreError, match="nothing to score"):
        letgo.evaluate(directory, [dataclasses.replace(empty, items=[], texts=[])])


def test_a_tokenizer_without_a_pad_token(directory, specs, tmp_path):
    """The end token pads then; with neither there is an error that says so."""
    folder = tmp_path / "model"
    shutil.copytree(directory, folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text())
            settings.pop("pad_token", None)
            (folder / name).write_text(json.dumps(settings))
    [one] = letgo.evaluate(folder, specs[:1]).values()
    [other] = letgo.evaluate(directory, specs[:1]).values()
    assert values(one) == values(other)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="neither a pad nor an end token"):
        letgo.evaluate(folder, specs[:1])


def test_a_run_killed_while_it_measures_scores_nothing_twice(directory, specs, tmp_path, monkeypatch):
    settings = settings_on(directory, specs[0]) | {"learning_rate": 1e-3}
    whole = letgo.unlearn(**settings, output_dir=str(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        letgo.unlearn(**settings, output_dir=str(tmp_path / "cut"), reporter=Killed(5))
    [partial] = (tmp_path / "cut").glob("scores-*.partial.jsonl")
    keys = {json.loads(line).get("key") for line in partial.read_text().splitlines()}
    assert len(keys) > 5
    put = ResumeLog.put
    fresh: list[str] = []

    def keeping(log, found):
        fresh.extend(key for key in found if log.path.name == partial.name)
        put(log, found)

    monkeypatch.setattr(ResumeLog, "put", keeping)
    again = letgo.unlearn(**settings, output_dir=str(tmp_path / "cut"), resume=True)
    assert fresh
    assert not keys & set(fresh)
    assert (again.result.before, again.result.after) == (whole.result.before, whole.result.after)
    assert not list(tmp_path.glob("*/*.partial.jsonl"))


def test_runs_that_share_scores_measure_what_they_have_in_common_once(directory, specs, tmp_path, monkeypatch):
    settings = settings_on(directory, specs[0])
    alone = letgo.unlearn(**settings, learning_rate=2e-3, output_dir=str(tmp_path / "alone"))
    shared = tmp_path / "scores"
    letgo.unlearn(**settings, learning_rate=1e-3, output_dir=str(tmp_path / "first"), shared_scores=shared)
    [left] = shared.iterdir()
    fresh: dict[str, int] = {}
    put = ResumeLog.put

    def counting(log, found):
        fresh[log.path.name] = fresh.get(log.path.name, 0) + sum(key not in log for key in found)
        put(log, found)

    monkeypatch.setattr(ResumeLog, "put", counting)
    second = letgo.unlearn(**settings, learning_rate=2e-3, output_dir=str(tmp_path / "second"), shared_scores=shared)
    # What was unlearned is measured, what both began with is not.
    assert len(fresh) == 1
    assert sum(fresh.values()) == len(left.read_text().splitlines()) - 1
    assert (second.result.before, second.result.after) == (alone.result.before, alone.result.after)
    # Another model's scores are not taken for this one's.
    other = settings | {"model": str(tmp_path / "second"), "output_dir": str(tmp_path / "on")}
    letgo.unlearn(**other, shared_scores=shared)
    assert len(list(shared.iterdir())) == 2
