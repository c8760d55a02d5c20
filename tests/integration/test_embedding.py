"""The kernel inside other people's processes: scripts, notebooks, threads, forks, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.scripts import run, start

only_where_exit_can_wait = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3),
    reason="Python 3.12.0 to 3.12.2 start no threads once the interpreter ends",
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def starts() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """As ``start``; what still runs at the end of the test is killed."""
    made: list[subprocess.Popen[str]] = []

    def begin(*args: Any, **options: Any) -> subprocess.Popen[str]:
        made.append(start(*args, **options))
        return made[-1]

    yield begin
    for process in made:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_for(path: Path, word: str) -> None:
    deadline = time.monotonic() + 40
    while not (path.exists() and word in path.read_text()):
        assert time.monotonic() < deadline, f"{path} never said {word}"
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


@pytest.mark.parametrize("how", ["file", "-c", "stdin"])
def test_a_script_of_any_kind_runs(home, how):
    output, errors = run(home, "print(ct.dispatch_sync(flow)(1, 2).result)", how=how)
    assert output.strip() == "5"
    assert errors == ""


@only_where_exit_can_wait
def test_exit_waits_and_says_for_what(home):
    output, errors = run(home, "print(ct.dispatch(napping)(0.5))")
    lines = errors.splitlines()
    assert len(lines) == 1
    assert "napping" in lines[0]
    assert output.strip() in lines[0]
    again, errors = run(home, f"print(ct.get_result({output.strip()!r}).result)")
    assert again.strip() == "0.5"
    assert errors == ""


def test_exit_says_what_is_left_where_python_cannot_wait(home):
    late = "from chelate import embedding; embedding._TOO_LATE = True; "
    output, errors = run(home, f"{late}print(ct.dispatch(napping)(0.5))")
    line = errors.splitlines()[-1]
    assert f"napping ({output.strip()}) goes on with" in line
    assert "`chelate resume`" in line
    again, _ = run(home, f"print(ct.get_result({output.strip()!r}, wait=True).result)")
    assert again.strip() == "0.5"


def test_exit_does_not_wait_when_told_so_and_the_next_process_goes_on(home, tmp_path):
    ledger = tmp_path / "ledger"
    begin = time.monotonic()
    output, errors = run(
        home, f"print(ct.dispatch(napping)(15.0, {str(ledger)!r}))", CHELATE_EXIT_WAIT="0"
    )
    assert time.monotonic() - begin < 14
    assert errors == ""
    body = (
        f"ct.cancel({output.strip()!r}, wait=True); print(ct.get_result({output.strip()!r}).status)"
    )
    assert run(home, body)[0].strip() == "CANCELLED"


def interrupt(process: subprocess.Popen[str], group: bool) -> None:
    if group:  # as a terminal does
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)


@pytest.mark.parametrize(
    "where",
    [
        "get_result",
        pytest.param("exit", marks=only_where_exit_can_wait),
        pytest.param("exit with workers", marks=only_where_exit_can_wait),
    ],
)
def test_ctrl_c_detaches_without_a_traceback(home, tmp_path, where, starts):
    ledger = tmp_path / "ledger"
    waits = "ct.get_result(d, wait=True)" if where == "get_result" else "pass"
    process = starts(
        home, f"d = ct.dispatch(napping)(3.0, {str(ledger)!r}); print(d, flush=True); {waits}"
    )
    dispatch_id = process.stdout.readline().strip()
    wait_for(ledger, "start")
    time.sleep(0.3)
    begin = time.monotonic()
    interrupt(process, group=where == "exit with workers")
    _, errors = finish(process)
    assert time.monotonic() - begin < 2.5, "it waited all the same"
    assert "Traceback" not in errors, errors
    assert errors.count("Detached") == 1
    output, errors = run(home, f"print(ct.get_result({dispatch_id!r}, wait=True).result)")
    assert output.strip() == "3.0"


def test_a_caught_ctrl_c_lets_the_program_go_on(home):
    output, _ = run(
        home,
        """
        d = ct.dispatch(napping)(1.0)
        threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            ct.get_result(d, wait=True)
        except KeyboardInterrupt:
            print("caught")
        print(ct.get_result(d, wait=True).status, ct.dispatch_sync(flow)(1, 1).result)
        """,
    )
    assert output.split() == ["caught", "COMPLETED", "3"]


def test_inside_a_running_event_loop_as_in_a_notebook(home):
    output, errors = run(
        home,
        """
        import asyncio
        async def cell():
            return ct.dispatch_sync(flow)(1, 2).result
        async def notebook():
            return [await cell() for _ in range(2)]
        print(asyncio.run(notebook()))
        """,
    )
    assert output.strip() == "[5, 5]"
    assert errors == ""


def test_many_threads_at_once(home):
    output, errors = run(
        home,
        """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: ct.dispatch_sync(flow)(n, 1).result, range(16)))
        print(found == [n + 2 for n in range(16)])
        """,
    )
    assert output.strip() == "True"
    assert errors == ""


def test_imported_in_a_thread(home):
    code = """
    def work():
        import chelate
        print(chelate.dispatch_sync(flow)(1, 2).result)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    """
    assert run(home, code)[0].strip() == "5"


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_dispatches_by_itself(home):
    output, errors = run(
        home,
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        before = ct.dispatch_sync(flow)(1, 2)
        running = ct.dispatch(napping)(1.0)
        pid = os.fork()
        if pid == 0:
            print("child", before.result, ct.dispatch_sync(flow)(2, 2).result, flush=True)
            ct.shutdown()
            os._exit(0)
        print("parent", os.waitpid(pid, 0)[1], flush=True)
        print(ct.get_result(running, wait=True).status, flush=True)
        """,
    )
    assert output.split() == ["child", "5", "6", "parent", "0", "COMPLETED"]
    assert errors == ""


def test_two_processes_on_one_home(home, starts):
    body = "print([ct.dispatch_sync(flow)(n, 1).result for n in range(10)])"
    processes = [starts(home, body) for _ in range(2)]
    for process in processes:
        output, errors = finish(process)
        assert output.strip() == str([n + 2 for n in range(10)]), errors


def test_a_waiting_process_takes_over_from_a_killed_one(home, tmp_path, starts):
    ledger = tmp_path / "ledger"
    owner = starts(home, f"print(ct.dispatch(napping)(1.5, {str(ledger)!r}), flush=True)")
    dispatch_id = owner.stdout.readline().strip()
    other = starts(home, f"print(ct.get_result({dispatch_id!r}, wait=True).result)")
    wait_for(ledger, "start")
    owner.kill()
    finish(owner)
    output, errors = finish(other)
    assert output.strip() == "1.5", errors
    assert ledger.read_text().count("end") == 1


def test_shutdown_wakes_who_waits(home):
    output, _ = run(
        home,
        """
        d = ct.dispatch(napping)(20.0)
        threading.Timer(0.8, ct.shutdown).start()
        try:
            ct.get_result(d, wait=True)
        except ct.errors.ResultNotReadyError as error:
            print("shut down" in str(error))
        ct.cancel(d, wait=True)
        """,
    )
    assert output.strip() == "True"


def test_under_pytest(tmp_path, monkeypatch):
    import chelate as ct

    monkeypatch.setenv("CHELATE_HOME", str(tmp_path))
    ct.shutdown()

    @ct.electron
    def double(x):
        return 2 * x

    @ct.lattice
    def here(x):
        return double(x)

    try:
        assert ct.dispatch_sync(here)(4).result == 8
    finally:
        ct.shutdown()
