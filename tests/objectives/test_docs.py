"""The tables of docs/objectives.md against the catalogs."""

from __future__ import annotations

from pathlib import Path

import pytest

from letgo.core.catalog import settings_of
from letgo.objectives import OBJECTIVES, ONE_SHOT, RETAIN_TERMS, joint
from letgo.objectives.schedules import SCHEDULES

TEXT = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
ROWS = {
    line.split("`")[1]: [cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| `")
}
TERMS = [name for name in OBJECTIVES.names() if not name.endswith(("_gdr", "_klr")) and name != "graddiff"]


@pytest.mark.parametrize(
    ("catalog", "name"),
    [(c, n) for c, names in ((OBJECTIVES, TERMS), (RETAIN_TERMS, RETAIN_TERMS.names()), (ONE_SHOT, ONE_SHOT.names()))
     for n in names],
)  # fmt: skip
def test_every_row_says_what_the_record_says(catalog, name):
    record, row = catalog.record(name), ROWS[name]
    assert row[-1].startswith(record.faithfulness), row
    if catalog is ONE_SHOT:
        return
    needs = [quantity for names in record.reference.values() for quantity in names]
    assert row[2] == "–" if not needs else row[2].startswith(needs[0]), row


def test_there_are_no_rows_of_other_things():
    keys = {"objective", "objective_args", "retain_loss", "retain_weight", "retain_weight_schedule", "forget_weight"}
    assert set(ROWS) - keys == {*TERMS, *RETAIN_TERMS.names(), *ONE_SHOT.names()}


def test_presets_are_those_that_it_names():
    both = {name.removesuffix("_klr") for name in OBJECTIVES.names() if name.endswith("_klr")} - {"ga"}
    assert both == {"npo", "simnpo", "dpo", "idk_dpo", "wga", "satimp"}
    alone = {n.removesuffix("_gdr") for n in OBJECTIVES.names() if n.endswith("_gdr")} - both
    assert alone == {"random_label", "undial", "ce_u"}


def test_figures_and_settings():
    assert f"{joint.MOST_WASTE:.0%}".replace("%", " %") in TEXT
    assert settings_of(OBJECTIVES.load("rmu"))["trained_layers"] == 3
    assert OBJECTIVES.record("rmu").retain_weight == 1200
    assert all(f"`{name}" in TEXT for name in SCHEDULES)
