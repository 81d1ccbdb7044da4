"""What is released: the source with its docs, recipes and tests, from files that agree with each other."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GRAFTED = ("docs", "recipes", "research", "perf", "scripts", "tests")


@pytest.mark.slow
def test_the_source_distribution_holds_docs_recipes_and_tests(tmp_path):
    pytest.importorskip("build.__main__")
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".venv", "letgo-runs*", "build", "dist")
    for name in (*GRAFTED, "src"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, tree)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check"]
    done = subprocess.run([*command, "--outdir", tmp_path, tree], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        inside = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    wanted = {
        path.relative_to(tree).as_posix()
        for name in (*GRAFTED, "src/letgo")
        for path in (tree / name).rglob("*")
        if path.is_file()
    }
    assert wanted - inside == set()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Dockerfile", "Makefile", "constraints.txt"} <= inside


def test_every_folder_of_the_source_is_named_in_the_manifest():
    lines = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    assert {line.split()[1] for line in lines if line.startswith("graft ")} == set(GRAFTED)
    assert all((ROOT / name).is_dir() for name in GRAFTED)


def test_the_release_is_built_checked_and_attested_in_this_order():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert list(jobs) == ["build", "check", "attest"]
    assert (jobs["check"]["needs"], jobs["attest"]["needs"]) == ("build", "check")
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    told = {f"Programming Language :: Python :: {version}" for version in jobs["check"]["strategy"]["matrix"]["python"]}
    assert told <= set(PROJECT["classifiers"])


def test_the_image_takes_torch_from_the_index_of_its_cpu_builds_before_letgo():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    installs = [line for line in lines if line.startswith("RUN pip install")]
    assert "whl/cpu torch" in installs[0]
    assert installs[1].endswith(" .")
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert 'CMD ["demo", "--tiny", "--output", "/runs"]' in lines
