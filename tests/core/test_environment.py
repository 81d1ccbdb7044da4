"""What a record says of the machine."""

from __future__ import annotations

import torch

from letgo.core.environment import circumstances


def test_a_record_names_the_processors_kernels_and_the_threads():
    threads = torch.get_num_threads()
    words = circumstances()["versions"]["processor"]
    assert f" {torch.backends.cpu.get_cpu_capability()}, {threads} thread" in words
    assert words.endswith("s") == (threads > 1)


def test_a_record_names_what_computes():
    words = circumstances()["versions"]["device"]
    assert words.startswith("cuda: " if torch.cuda.is_available() else "cpu: ")
    assert len(words) > len("cpu: ")
