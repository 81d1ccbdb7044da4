from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize("name", ["", "connectivity", "landscape", "sharpness", "certificate", "depth", "spectrum"])
def test_help(letgo, name):
    code, out, _ = letgo("analyze", *filter(None, [name]), "--help")
    assert code == 0
    assert "Usage" in out


def test_json_is_one_document_and_goes_where_it_is_told(letgo, run, other, tmp_path):
    quick = ("--limit", 2, "--json", "--output", tmp_path / "out")
    commands = {
        "connectivity": (run, other, "--points", 3, "--no-metrics"),
        "landscape": (run, "--direction", "random", "--points", 3, "--span", -0.5, 0.5),
        "sharpness": (run, "--radius", 0.1, "--radius", 0.2, "--steps", 1, "--draws", 1, "--trace-draws", 0),
        "certificate": (run, "--sigma", 0.01, "--draws", 20, "--utility-draws", 1, "--no-rerun"),
        "depth": (run, "--retrained", other, "--threshold", 0.0),
        "spectrum": (run, "--top", 2, "--no-rerun"),
    }
    for kind, words in commands.items():
        limited = quick[2:] if kind in ("depth", "spectrum") else quick
        code, out, _ = letgo("analyze", kind, *words, *limited)
        assert code == 0
        made = json.loads(out)
        assert made["kind"] == kind
        [written] = json.loads((tmp_path / "out" / f"analysis-{kind}.json").read_text())["entries"]
        assert written == made
    assert not list(run.glob("analysis-*"))


def test_told_without_json_and_written_into_the_run(letgo, run, other):
    code, out, err = letgo("analyze", "connectivity", run, other, "--points", 3, "--no-metrics", "--quiet")
    assert code == 0
    assert "Linear mode connectivity: run other" in out
    assert "forget loss" in out
    assert "left" not in err
    assert (run / "analysis-connectivity.json").is_file()


def test_mistakes_exit_2_with_one_message(letgo, run, tmp_path):
    for words, said in (
        (("certificate", run, "--sigma", "0"), "sigma must be above 0"),
        (("certificate", run, "--draws", "3"), "at least 7 draws are needed"),
        (("landscape", tmp_path), "is not a run directory"),
        (("sharpness", run, "--output", run / "config.json"), "is a file; name a directory"),
        (("connectivity", run), "needs two models"),
        (("depth", run), "needs the retrained model: name it with --retrained MODEL"),
        (("spectrum", run, "--top", 0), "top must be at least 1"),
        (("spectrum", run, "--limit", 3), "No such option: --limit"),
    ):
        code, out, err = letgo("analyze", *words)
        assert code == 2
        assert said in err
        assert "Traceback" not in err
        assert out == ""
