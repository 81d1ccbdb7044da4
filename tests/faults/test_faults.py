"""A part of `make torture`: a few of its faults in each job, spread over all moments."""

from __future__ import annotations

import pytest

from tests.faults.jobs import JOBS, Bench, spread

COUNTS = {"unlearn": 8, "attack": 2, "attack on a model": 1, "eval": 2, "sweep": 3, "analyze": 1, "report": 1}
COUNTS |= {"attest": 1, "requests": 2, "unlearn and export": 2, "export": 2, "export packed": 2, "audit": 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_after_a_fault_a_job_ends_as_if_there_had_been_none(name, tmp_path):
    bench = Bench(JOBS[name], tmp_path)
    assert len(bench.events) >= 4
    problems = {fault: bench.try_fault(*fault) for fault in spread(bench, COUNTS[name])}
    assert not any(problems.values()), "\n".join(f"{fault}: {text}" for fault, text in problems.items() if text)


def test_the_comparison_can_fail(tmp_path):
    """What makes the test above worth something: a job that goes on to another end is found."""
    job = JOBS["eval"]
    bench = Bench(job, tmp_path)
    [name] = [name for name in bench.whole if name.endswith("samples.jsonl")]
    bench.whole[name] += "more"
    assert "samples.jsonl (other content)" in bench.try_fault("kill", len(bench.events))
