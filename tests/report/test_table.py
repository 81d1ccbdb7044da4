"""Short names of attacks say what tells them apart, and no more."""

from letgo.report.table import short_labels


def test_an_attack_alone_of_its_name_is_called_by_it():
    found = short_labels(["quantize:bits=3,group_size=32", "relearn:steps=20,holdout=0.5"])
    assert list(found.values()) == ["quantize", "relearn"]


def test_attacks_of_one_name_are_told_apart_by_what_differs():
    labels = ["quantize:bits=3,group_size=32", "quantize:bits=4,group_size=32", "quantize:bits=4", "noise"]
    found = short_labels([*labels, labels[0]])
    assert found == dict(zip(labels, ["quantize bits=3, group_size=32", "quantize bits=4, group_size=32",
                                      "quantize bits=4", "noise"], strict=True))  # fmt: skip
    found = short_labels(labels[:2])
    assert list(found.values()) == ["quantize bits=3", "quantize bits=4"]


def test_names_are_never_shared():
    labels = ["relearn", "relearn:steps=5", "relearn:data=retain"]
    assert len(set(short_labels(labels).values())) == 3
