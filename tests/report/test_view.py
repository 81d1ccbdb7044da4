"""`letgo view`: what it shows of runs and sweeps under way, and whom it answers."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading

import pytest

from letgo.core.errors import UserError
from letgo.report.viewer import Viewer, at_work, page_of, read_live, works_in
from letgo.runs.results import CONFIG_FILE, LIVE_FILE
from letgo.runs.sweeps import CellState, GroupState, Sweep, write_sweep
from tests.report import runs as made


def under_way(directory, steps=20, of=80, seconds=2.0, alive=True):
    """A run's directory while it trains, written by this process."""
    directory.mkdir(parents=True)
    (directory / CONFIG_FILE).write_text("model: x\n")
    rows = [row | {"of": of, "at": 1000.0 + seconds * row["step"]} for row in made.history()[:steps]]
    (directory / LIVE_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 2')
    if alive:
        (directory / ".letgo.lock").write_text(f"{socket.gethostname()} {os.getpid()}\n")
    return directory


@pytest.fixture
def root(tmp_path):
    """A sweep with a finished, an unfinished and a pending cell; a run beside it."""
    folder = (tmp_path / "root").resolve()
    sweep = folder / "sweep"
    made.write_run(sweep / "runs" / "adamw-0", made.result(run_id="adamw-0"), made.samples(made.INJECTED))
    under_way(sweep / "runs" / "fozo-0")
    cells = [
        CellState(name="adamw-0", seed=0, status="finished", run="runs/adamw-0"),
        CellState(name="fozo-0", seed=0, status="pending"),
        CellState(name="fozo-1", seed=1, status="pending"),
    ]
    group = GroupState(name="g", axes={}, optimizer="fozo", cells=cells)
    write_sweep(sweep, Sweep(source="s", fingerprint="f", document={}, target="forget_accuracy <= 0.4", groups=[group]))
    made.write_run(folder / "alone <b>", made.result(run_id="alone"))
    return folder


@pytest.fixture
def ask(root):
    """ask(path, **headers): the answer's status, headers and text."""
    with Viewer(root) as viewer:
        thread = threading.Thread(target=viewer.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()

        def asked(path, method="GET", host=None, **headers):
            connection = http.client.HTTPConnection("127.0.0.1", viewer.server_port, timeout=300)
            connection.putrequest(method, path, skip_host=True)
            for each in [f"127.0.0.1:{viewer.server_port}"] if host is None else host:
                connection.putheader("Host", each.replace("PORT", str(viewer.server_port)))
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            return answer.status, answer.headers, text

        yield asked
        viewer.shutdown()
        thread.join()


def test_the_first_page_has_every_run_and_sweep_with_what_is_under_way(ask):
    status, headers, text = ask("/")
    assert status == 200
    assert headers["Refresh"] == "3"
    assert "1 finished, 2 pending, 1 at work" in text
    assert "target forget_accuracy &lt;= 0.4" in text
    assert "20 of 80" in text
    assert "2 min 00 s" in text, "sixty steps of two seconds"
    assert "did not survive relearn" in text
    assert 'href="/run/sweep/runs/adamw-0"' in text
    assert 'href="/run/alone%20%3Cb%3E"' in text
    assert '<a href="/run/sweep/runs/fozo-0">fozo-0</a></th><td>0</td><td>at work</td>' in text
    assert "fozo-1</th><td>1</td><td>pending</td>" in text
    assert "<b>" not in text.replace("<b>1 finished, 2 pending, 1 at work</b>", "")


def test_a_sweeps_time_left_counts_the_attacks_of_what_is_finished_once(root):
    [sweep] = works_in(root)[1]
    assert sweep.left == 2 * made.result().total_seconds, "two cells are left, and one is at work"


def test_a_run_under_way_shows_its_curve_as_it_comes(ask, root):
    status, headers, text = ask("/run/sweep/runs/fozo-0")
    assert (status, headers["Refresh"]) == (200, "3")
    assert "Training loss" in text
    assert "at step 20" in text
    with (root / "sweep" / "runs" / "fozo-0" / LIVE_FILE).open("a") as file:
        file.write("\n" + json.dumps(made.history()[20] | {"of": 80, "at": 1042.0}) + "\n")
    assert "at step 21" in ask("/run/sweep/runs/fozo-0")[2], "read anew each time; half a line does no harm"


def test_a_finished_run_has_the_reports_page_with_curves_and_samples(ask):
    status, headers, text = ask("/run/sweep/runs/adamw-0")
    assert status == 200
    assert headers["Refresh"] is None
    for part in ("Training loss", "During the attack relearn", "The same questions, asked of each model"):
        assert part in text
    assert "<script>alert(1)" not in text
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (["localhost:PORT"], 200),
        (["[::1]:PORT"], 200),
        (["evil.example:PORT"], 421),
        (["127.0.0.1"], 421),
        (["127.0.0.1:PORT.evil.example"], 421),
        (["127.0.0.1:PORT", "evil.example"], 421),
        ([], 421),
    ],
)
def test_only_this_machines_names_are_answered_to(ask, host, status):
    got, _, text = ask("/", host=host)
    assert got == status
    assert ("sweep" in text) == (status == 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_sent(ask, root, method):
    before = sorted(root.rglob("*"))
    status, headers, _ = ask("/", method=method, Origin="https://evil.example")
    assert status == 501
    assert headers["Access-Control-Allow-Origin"] is None
    assert sorted(root.rglob("*")) == before


def test_no_other_site_may_read_or_frame_a_page(ask):
    for path in ("/", "/run/sweep/runs/adamw-0", "/nowhere"):
        _, headers, _ = ask(path, Origin="https://evil.example")
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_head_has_the_headers_alone(ask):
    status, headers, text = ask("/", method="HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize(
    "path",
    [
        "/run/../outside",
        "/run/%2e%2e/outside",
        "/run/sweep/runs/../../../outside",
        "/run//etc",
        "/run/sweep/runs/adamw-0/result.json",
        "/run/linked",
        "/etc/passwd",
        "//evil.example/",
        "/run/%00",
    ],
)
def test_no_path_leads_out_of_the_folder(ask, root, path):
    outside = made.write_run(root.parent / "outside", made.result(run_id="secret"))
    (root / "linked").symlink_to(outside)
    status, _, text = ask(path)
    assert status == 404
    assert "secret" not in text


def test_a_run_with_a_file_that_leads_out_is_left_out_and_named(ask, root):
    outside = made.write_run(root.parent / "outside", made.result(run_id="secret"))
    samples = root / "alone <b>" / "samples.jsonl"
    samples.unlink()
    samples.symlink_to(outside / "samples.jsonl")
    _, _, text = ask("/")
    assert "samples.jsonl is a link that leads out of" in text
    assert ask("/run/alone%20%3Cb%3E")[0] == 404


def test_a_damaged_record_is_named_and_the_rest_is_shown(ask, root):
    (root / "alone <b>" / "result.json").write_text("{")
    status, _, text = ask("/")
    assert status == 200
    assert "it is damaged" in text
    assert "adamw-0" in text


def test_whose_writer_has_ended_is_called_stopped(root, monkeypatch):
    dead = under_way(root / "dead", alive=False)
    assert not at_work(dead)

    def gone(number, signal):
        raise ProcessLookupError

    (dead / ".letgo.lock").write_text(f"{socket.gethostname()} 12345\n")
    monkeypatch.setattr(os, "kill", gone)
    assert not at_work(dead)
    (dead / ".letgo.lock").write_text("another-machine 12345\n")
    assert at_work(dead), "nobody here can tell of another machine"
    (dead / ".letgo.lock").unlink()
    [work] = [work for work in works_in(root)[0] if work.name == "dead"]
    assert work.state == "stopped: go on with --resume"
    assert work.left is None


def test_a_live_history_that_is_none_yet_is_empty(tmp_path):
    assert read_live(tmp_path / LIVE_FILE) == []
    (tmp_path / LIVE_FILE).write_text('not json\n{"step": "x"}\n{"step": 1, "loss": 2.0}\n')
    assert [row["step"] for row in read_live(tmp_path / LIVE_FILE)] == [1]


def test_a_folder_without_runs_says_so_and_one_run_is_shown(tmp_path):
    assert "There is no run here yet." in page_of(tmp_path, "/")[0]
    run = made.write_run(tmp_path / "run", made.result()).resolve()
    assert 'href="/run/."' in page_of(run, "/")[0]
    assert "Training loss" in page_of(run, "/run/.")[0]
    with pytest.raises(UserError, match="no such folder"):
        Viewer(tmp_path / "nowhere")


def test_a_port_that_is_taken_is_a_users_mistake(root):
    with Viewer(root) as first, pytest.raises(UserError, match="name another one with --port"):
        Viewer(root, first.server_port)
