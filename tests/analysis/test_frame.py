"""A killed analysis goes on where it was, and ends in the same bits; nothing is then left of its log."""

from __future__ import annotations

import pytest

from letgo.analysis.certificate import certificate
from letgo.analysis.connectivity import connectivity
from letgo.analysis.landscape import landscape
from letgo.analysis.losses import RowLosses
from letgo.analysis.reveal import Criterion
from tests.analysis.conftest import SAME

CERTIFICATE = {"draws": 20, "limit": 3, "utility_draws": 1, "alpha": 0.05, "sigma": 0.01, "rerun": False}
CASES = {
    "connectivity": (connectivity, {"points": 5, "metrics": False}, RowLosses, "metrics", 4, 6),
    "landscape": (landscape, {"points": 3, "limit": 2}, RowLosses, "values", 5, 5 + 9 + 5),
    "certificate": (certificate, CERTIFICATE, Criterion, "outcomes", 8, 8 + 20 - 7),
}
"""The function that dies at its n-th call, and all calls of it: of the killed analysis and of those after it."""


@pytest.mark.parametrize("kind", CASES)
def test_a_killed_one_goes_on_and_ends_in_the_same_bits(run, other, tmp_path, monkeypatch, kind):
    analyse, settings, owner, method, last, every = CASES[kind]
    subject = [run, other] if kind == "connectivity" else run
    whole = analyse(subject, output=tmp_path / "whole", **settings)
    measure, calls = getattr(owner, method), []

    def dies(self, *args):
        calls.append(1)
        if len(calls) == last:
            raise KeyboardInterrupt
        return measure(self, *args)

    monkeypatch.setattr(owner, method, dies)
    with pytest.raises(KeyboardInterrupt):
        analyse(subject, **settings)
    [log] = run.glob(f".analysis-{kind}-*.jsonl")
    with log.open("a") as file:
        file.write('[["0.75"], {"forget_lo')  # cut short by the kill
    if kind == "landscape":
        # Other settings are another grid.
        landscape(run, **settings, seed=1)
    again = analyse(subject, **settings)
    assert len(calls) == every
    assert again.model_dump(exclude=SAME) == whole.model_dump(exclude=SAME)
    assert not list(run.glob(".analysis-*"))
