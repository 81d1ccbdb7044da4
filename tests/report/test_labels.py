"""Short names of attacks have the settings that differ, and no more."""

import pytest

from letgo.report.labels import short_labels

QUANTIZE = ["quantize:bits=3,group_size=32", "quantize:bits=4,group_size=32"]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([QUANTIZE[0], "relearn:steps=20,holdout=0.5"], ["quantize", "relearn"]),
        (QUANTIZE, ["quantize bits=3", "quantize bits=4"]),
        (
            [*QUANTIZE, "quantize:bits=4", "noise", QUANTIZE[0]],
            ["quantize bits=3, group_size=32", "quantize bits=4, group_size=32", "quantize bits=4", "noise"],
        ),
    ],
)
def test_an_attack_is_called_by_its_name_and_by_what_differs(labels, names):
    assert short_labels(labels) == dict(zip(dict.fromkeys(labels), names, strict=True))


def test_names_are_never_shared():
    labels = ["relearn", "relearn:steps=5", "relearn:data=retain"]
    assert len(set(short_labels(labels).values())) == 3
