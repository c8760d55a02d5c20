"""The command, as somebody at a prompt meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from chelate.cli import main

SCRIPT = """
import sys
import time

import chelate as ct


@ct.electron
def double(x):
    print("doubling", x)
    print("careful", file=sys.stderr)
    return 2 * x


@ct.electron
def fail(x):
    raise ValueError(f"{x} is no good")


@ct.electron
def nap(seconds):
    print("sleeping", flush=True)
    time.sleep(seconds)
    return seconds


@ct.electron
@ct.lattice
def inner(x):
    return double(x)


@ct.lattice
def good(x):
    return inner(double(x))


@ct.lattice
def bad(x):
    return [fail(double(x)), double(x)]


@ct.lattice
def slow(seconds):
    return double(nap(seconds))


if __name__ == "__main__":
    ids = []
    for name, value in zip(sys.argv[1::2], sys.argv[2::2]):
        ids.append(ct.dispatch(globals()[name])(float(value)))
        print(ids[-1], flush=True)
    for dispatch_id in ids:
        ct.get_result(dispatch_id, wait=True)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def script(home) -> Path:
    path = home / "flows.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def done(home, script) -> list[str]:
    """Ids of a dispatch that completed and of one that failed."""
    run = subprocess.run(
        [sys.executable, str(script), "good", "1", "bad", "2"],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return run.stdout.split()


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CHELATE_")}
    return {
        **kept,
        "CHELATE_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }


def chelate(home: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "chelate", *arguments],
        env=environment(home),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        **options,
    )


def out(home: Path, *arguments: str) -> str:
    run = chelate(home, *arguments)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def document(home: Path, *arguments: str):
    return json.loads(out(home, *arguments, "--json"))


def until(condition, what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.1)


def test_ls(home, done) -> None:
    text = out(home, "ls")
    assert all(dispatch_id in text for dispatch_id in done)
    assert "\x1b" not in text
    listed = document(home, "ls")
    assert [row["dispatch_id"] for row in listed] == done[::-1]
    assert [row["status"] for row in listed] == ["FAILED", "COMPLETED"]
    assert [row["name"] for row in document(home, "ls", "--status", "FAILED")] == ["bad"]
    assert [row["name"] for row in document(home, "ls", "--name", "good")] == ["good"]
    assert len(document(home, "ls", "--limit", "1")) == 1
    below = [row for row in document(home, "ls", "--all") if row["parent_dispatch_id"]]
    assert [row["name"] for row in below] == ["inner"]
    assert out(home, "ls", "--name", "nobody") == "No such dispatches.\n"


def test_show(home, done) -> None:
    text = out(home, "show", done[0])
    assert "COMPLETED" in text
    assert "4.0" in text
    shown = document(home, "show", done[1])
    assert shown["status"] == "FAILED"
    reasons = {task["name"]: task["reason"] for task in shown["tasks"] if task["error"]}
    assert reasons["fail"] == "USER_ERROR"
    assert "ValueError: 4.0 is no good" in out(home, "show", done[1])


def test_logs(home, done) -> None:
    assert out(home, "logs", done[0], "0") == "doubling 1.0\n"
    assert out(home, "logs", done[0], "double", "--stderr") == "careful\n"
    assert out(home, "logs", done[0], "double", "--follow") == "doubling 1.0\n"
    found = document(home, "logs", done[0], "double")
    assert (found["node_id"], found["status"]) == (0, "COMPLETED")
    assert found["text"] == "doubling 1.0\n"
    twice = chelate(home, "logs", done[1], "double")
    assert twice.returncode == 1
    assert "2 tasks are named 'double'" in twice.stderr
    nobody = chelate(home, "logs", done[1], "nobody", "--json")
    assert nobody.returncode == 1
    assert json.loads(nobody.stdout)["type"] == "TaskNotFoundError"


def test_graph(home, done, tmp_path) -> None:
    assert "✗ fail" in out(home, "graph", done[1]).replace("╰─", "")
    picture = tmp_path / "graph.svg"
    assert out(home, "graph", done[0], "--svg", str(picture)) == ""
    ET.fromstring(picture.read_text(encoding="utf-8"))
    assert "good" in out(home, "graph", done[0], "--svg", str(picture), "--text")
    nodes = {node["name"]: node for node in document(home, "graph", done[0])["nodes"]}
    assert nodes["inner"]["needs"] == [nodes["double"]["id"]]
    assert nodes["inner"]["kind"] == "sublattice"
    assert all(node["status"] == "COMPLETED" for node in nodes.values())
    nowhere = chelate(home, "graph", done[0], "--svg", str(tmp_path / "no" / "graph.svg"))
    assert nowhere.returncode == 1
    assert "cannot be written" in nowhere.stderr


def test_beginnings_of_ids(home, done) -> None:
    assert document(home, "show", done[0][:8])["dispatch_id"] == done[0]
    assert document(home, "show", done[0].upper())["dispatch_id"] == done[0]
    short = chelate(home, "show", done[0][:3])
    assert short.returncode == 1
    assert "4 characters" in short.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (["show", "not an id"], "InvalidDispatchIdError", 1),
        (["show", "0000"], "DispatchNotFoundError", 1),
        (["show", "00000000-0000-4000-8000-000000000000"], "DispatchNotFoundError", 1),
        (["cancel", "00000000-0000-4000-8000-000000000000"], "DispatchNotFoundError", 1),
        (["graph", "[/bold]"], "InvalidDispatchIdError", 1),
        (["ls", "--status", "TIRED"], "UsageError", 2),
        (["ls", "--bogus"], "UsageError", 2),
        (["dance"], "UsageError", 2),
        (["show"], "UsageError", 2),
    ],
)
def test_errors(tmp_path, monkeypatch, capsys, arguments, kind, code) -> None:
    monkeypatch.setenv("CHELATE_HOME", str(tmp_path))
    assert main(arguments) == code
    plain = capsys.readouterr()
    assert plain.out == ""
    assert plain.err.strip()
    assert "Traceback" not in plain.err
    if code == 1:
        assert len(plain.err.splitlines()) == 1
    assert main([*arguments, "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"error", "type"}
    assert answer["type"] == kind


def test_a_wrong_setting_is_one_sentence(home) -> None:
    environ = {**environment(home), "CHELATE_MAX_DEPTH": "deep"}
    run = subprocess.run(
        [sys.executable, "-m", "chelate", "ls", "--json"],
        env=environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 1
    assert json.loads(run.stdout)["type"] == "ConfigError"
    assert "CHELATE_MAX_DEPTH" in run.stderr


def test_a_home_that_cannot_be_used(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    run = chelate(tmp_path / "file" / "home", "ls")
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.startswith("chelate: ")


def test_an_empty_home(tmp_path) -> None:
    assert out(tmp_path, "ls") == "No dispatches.\n"
    assert document(tmp_path, "ls") == []
    assert document(tmp_path, "resume") == {"resumed": [], "troubles": {}}
    assert out(tmp_path, "resume") == "Nothing to resume.\n"


def test_plugins_and_version(home) -> None:
    rows = document(home, "plugins")
    assert {"local", "sqlite"} <= {row["name"] for row in rows if row["status"] == "ok"}
    assert "local" in out(home, "plugins")
    assert out(home, "version").startswith("chelate ")
    assert set(document(home, "version")) == {"chelate", "python"}


def test_a_reader_that_has_gone(home, done) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-m", "chelate", "ls"],
        env=environment(home), stdout=writer, stderr=subprocess.PIPE, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert (run.returncode, run.stderr) == (1, b"")


def test_cancel_reaches_another_process(home, script) -> None:
    with subprocess.Popen(
        [sys.executable, str(script), "slow", "300"],
        env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as owner:  # fmt: skip
        try:
            assert owner.stdout is not None
            dispatch_id = owner.stdout.readline().strip()

            def running() -> bool:
                nodes = document(home, "graph", dispatch_id)["nodes"]
                return nodes[0]["status"] == "RUNNING"

            until(running, "the task's start")
            early = chelate(home, "logs", dispatch_id, "nap")
            assert (early.returncode, early.stdout) == (0, "")
            assert "Task 'nap' is RUNNING" in early.stderr
            unknown = chelate(home, "cancel", dispatch_id, "nobody", "--json")
            assert json.loads(unknown.stdout)["type"] == "TaskNotFoundError"
            answer = document(home, "cancel", dispatch_id, "nap", "--wait")
            assert answer["cancelling"] == [0]
            assert "cancelled" in answer["message"]
            until(lambda: document(home, "show", dispatch_id)["end_time"], "the end")
            ended = document(home, "show", dispatch_id)
            assert [task["status"] for task in ended["tasks"][:1]] == ["CANCELLED"]
            assert "already ended" in out(home, "cancel", dispatch_id)
            assert owner.wait(60) == 0
        finally:
            owner.kill()


def left_by_the_dead(home, script, seconds) -> str:
    with subprocess.Popen(
        [sys.executable, str(script), "slow", seconds],
        env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        dispatch_id = owner.stdout.readline().strip()
        owner.kill()
    return dispatch_id


def test_a_cancel_of_what_nobody_runs_says_who_carries_it_out(tmp_path, script) -> None:
    home = tmp_path
    dispatch_id = left_by_the_dead(home, script, "300")
    assert "'chelate resume' carries the cancel out" in out(home, "cancel", dispatch_id)
    resumed = document(home, "resume")["resumed"]
    assert [row["status"] for row in resumed] in (["CANCELLED"], [])
    assert document(home, "show", dispatch_id)["status"] == "CANCELLED"


def test_resume_finishes_what_a_killed_process_left(tmp_path, script) -> None:
    home = tmp_path
    dispatch_id = left_by_the_dead(home, script, "2")
    assert document(home, "show", dispatch_id)["status"] != "COMPLETED"
    answer = document(home, "resume")
    assert [row["dispatch_id"] for row in answer["resumed"]] == [dispatch_id]
    assert answer["resumed"][0]["status"] == "COMPLETED"
    assert document(home, "show", dispatch_id)["result"] == "4.0"
    assert out(home, "resume") == "Nothing to resume.\n"
