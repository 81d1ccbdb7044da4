"""Any input is accepted and means what it says, or is refused with one message. `python -m tests.inputs COUNT` tries
more of them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.inputs.generators import Input, everything
from tests.inputs.invariant import meet


@pytest.mark.parametrize("kind", everything)
def test_inputs_are_understood_or_refused(kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")

    @settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(everything[kind])
    def check(given: Input) -> None:
        meet(given, folder)

    check()
