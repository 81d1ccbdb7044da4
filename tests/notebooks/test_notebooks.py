"""The notebooks under docs/ run from top to bottom, and are committed without what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["compare-optimizers", "unlearn-and-attack"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_committed(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_shows_what_it_promises(path, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    # A cell that fails raises CellExecutionError. A busy machine is slow: no limit for a cell.
    nbclient.NotebookClient(notebook, timeout=None, startup_timeout=600, resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data.get("text/html", "") for output in outputs if "data" in output]
    assert any("data:image/svg+xml;base64," in html for html in shown), "a figure"
    assert any("<table" in html for html in shown), "a table"
    said = [output.data["text/plain"] for output in outputs if "data" in output]
    assert any(text.startswith("unlearning: ") for text in said), "progress, unasked"
    assert not [output for output in outputs if output.output_type == "error"]
    assert "Loading weights" not in "".join(output.get("text", "") for output in outputs), "no library's own bar"
