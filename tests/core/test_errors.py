"""Messages are read by people: none is longer than what a person reads."""

from __future__ import annotations

import pytest

from letgo.core.errors import LetgoError, UserError, located


def test_a_message_stays_as_it_is():
    assert str(UserError("file.yaml: no\n  way out")) == "file.yaml: no\n  way out"
    assert str(LetgoError()) == ""


def test_what_nobody_wrote_by_hand_is_shown_by_its_ends():
    with pytest.raises(UserError) as caught, located("grid.yaml: attacks"):
        raise UserError(f"no setting {'[' * 10_000!r}\n  its settings: bits")
    first, second = str(caught.value).splitlines()
    assert first.startswith("grid.yaml: attacks: no setting '[[[[")
    assert first.endswith("[[['")
    assert len(first) < 2000
    assert second == "  its settings: bits"
