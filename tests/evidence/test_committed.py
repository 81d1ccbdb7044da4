"""What the repository keeps: grids that can be run, claims that name attacks that are made, a page of these files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from letgo.attacks.engine.spec import plan_attack
from letgo.evidence.page import write_page
from letgo.evidence.records import read_record
from letgo.evidence.settle import read_attacks
from letgo.evidence.subjects import SUBJECTS, command_of, subject_name
from letgo.sweep import read_grid
from letgo.training.config import read_config
from letgo.training.trainer import optimizer_settings

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "evidence"
GRIDS = sorted(path for path in RECIPES.glob("*.yaml") if not path.stem.startswith("attacks"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grids_can_be_run(path):
    grid = read_grid(path)
    assert path.read_text(encoding="utf-8").startswith(f"# letgo sweep recipes/evidence/{path.name} --resume\n")
    assert grid.output == Path("letgo-runs/evidence") / path.stem
    tuning = path.stem.startswith("tune-")
    assert (grid.tune is not None) == tuning
    assert ({cell.seed for cell in grid.cells} == {100}) == tuning, "tuning and evidence share no seed"


@pytest.mark.parametrize("path", sorted((RECIPES / "models").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_models_of_the_evidence_are_made_by_configs_that_can_be_read(path):
    assert path.read_text(encoding="utf-8").startswith(f"# letgo unlearn recipes/evidence/models/{path.name}\n")
    config = read_config(path)
    assert config.output_dir == f"letgo-runs/evidence/{path.stem}"
    assert config.objective == "ft"


def _of_subject(benchmark, *, tuned):
    grids = [(path, read_grid(path)) for path in GRIDS]
    return [
        (path, grid)
        for path, grid in grids
        if (grid.tune is not None) == tuned and subject_name(grid.document["base"]["benchmark"]) == benchmark
    ]


@pytest.mark.parametrize("benchmark", SUBJECTS)
def test_every_evidence_grid_of_a_subject_is_attacked_alike(benchmark):
    subject = SUBJECTS[benchmark]
    given = read_attacks(RECIPES / subject.attacks)
    labels = [plan_attack(spec).label for spec in given["attacks"]]
    assert {subject.half, subject.everything} <= set(labels)
    held_back = [plan_attack(spec).label for spec in given["held_back"]]
    assert held_back
    assert not set(held_back) & set(labels)
    ours = _of_subject(benchmark, tuned=False)
    # Where tuning has not been run, there is nothing yet to be attacked.
    assert ours or _of_subject(benchmark, tuned=True)
    for path, grid in ours:
        assert [plan_attack(spec).label for spec in grid.attacks] == [*labels, *held_back], path.name


def test_the_page_is_what_the_result_files_say(tmp_path):
    results = sorted((ROOT / "results").glob("*.json"))
    assert results
    for path in results:
        if not path.name.startswith("analysis-"):
            record = read_record(path)
            assert (ROOT / record.source).is_file(), f"{path.name}: {record.source}, which makes its runs, is missing"
    write_page(ROOT / "results", tmp_path / "evidence.md")
    text = (tmp_path / "evidence.md").read_text(encoding="utf-8")
    assert text == (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"), "make the page again"
    assert sum(path.stat().st_size for path in results) < 3_000_000


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    """The words of each command that the scripts in runs/ would give to Python, where nothing has been run yet."""
    return [words for name in ("evidence", "ideas", "places", "tofu10") for words in said_by(f"sh runs/{name}.sh")]


def said_by(command: str) -> list[list[str]]:
    done = subprocess.run(
        command.split(), cwd=ROOT, env={**os.environ, "PYTHON": "echo"}, capture_output=True, text=True, check=True
    )
    return [line.split() for line in done.stdout.splitlines()]


def test_a_script_makes_each_result_file_again(commands):
    written = {word for words in commands for word in words if word.startswith("results/")}
    for path in sorted((ROOT / "results").glob("*.json")):
        if not path.name.startswith("analysis-"):
            assert f"results/{path.name}" in written, f"{path.name}: no script in runs/ makes it"
    # Which runs there are to be analysed is looked for.
    places = (ROOT / "runs" / "places.sh").read_text(encoding="utf-8")
    for path in sorted((ROOT / "results").glob("analysis-*.json")):
        assert f"letgo analyze {path.stem.removeprefix('analysis-')} " in places


def test_the_command_that_the_page_names_makes_the_ladder():
    ladders = {path: command_of(read_record(path).key) for path in sorted((ROOT / "results").glob("ladder-*.json"))}
    made = {command: [words[-1] for words in said_by(command) if "collect" in words] for command in ladders.values()}
    for path, command in ladders.items():
        assert f"results/{path.name}" in made[command]


def test_the_scripts_name_grids_that_there_are(commands):
    made = {words[-1] for words in commands if words[:3] == ["-m", "letgo.evidence", "settle"]}
    swept = set()
    for words in commands:
        for word in words:
            if word.startswith("recipes/") and word not in made:
                assert (ROOT / word).is_file(), " ".join(words)
        if words[:3] == ["-m", "letgo", "sweep"]:
            swept.add(words[3])
    assert {str(path.relative_to(ROOT)) for path in GRIDS} <= swept, "a grid that no script runs"


def test_a_ladder_that_there_is_not_is_refused():
    done = subprocess.run(["sh", "runs/evidence.sh", "ga"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "no ladder ga; there are npo, graddiff, rmu, capitals and tofu\n"


def test_the_recommended_recipe_is_the_idea_that_was_run():
    config = read_config(ROOT / "recipes" / "recommended" / "muon-hybrid-capitals.yaml")
    record = read_record(ROOT / "results" / "ladder-npo-capitals.json")
    [group] = [group for group in record.groups if group.settings.get("fo") == "muon"]
    assert (config.optimizer, config.learning_rate, config.max_steps) == ("fozo", group.learning_rate, group.steps)
    assert optimizer_settings(config).items() >= group.settings.items()
    for attack in config.attacks:
        plan_attack(attack)
