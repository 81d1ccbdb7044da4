"""Sizes in bytes, read and written."""

from __future__ import annotations

import pytest

from letgo.core.errors import UserError
from letgo.core.sizes import read_size, size


def test_sizes_as_people_write_them():
    texts = ("80GB", "80G", "80 GiB", "1.5k", "7", "512mb", 80 * 10**9)
    sizes = [80 * 10**9, 80 * 10**9, 80 * 2**30, 1500, 7, 512 * 10**6, 80 * 10**9]
    assert [read_size(text, "x") for text in texts] == sizes
    for wrong in ("", "GB", "80 apples", "-1GB", "0GB", "0.5B", 0, -1, True, None):
        with pytest.raises(UserError, match="--device-memory must be a size such as 40GB"):
            read_size(wrong, "--device-memory")


def test_a_size_that_was_written_is_read_again():
    for count in (12, 1500, 250 * 10**6, 80 * 10**9, 4 * 10**12):
        assert read_size(size(count), "x") == count
