"""Large results stay on the host until somebody elsewhere needs them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import hashlib
import os
import pickle
import pprint
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.remote.box import Box, Named
from tests.remote.conftest import job_processes
from tests.remote.staying import SIZE, begin, chain, halting, make, replaced, turned, waiting

import chelate as ct
from chelate import embedding
from chelate.api import AuthenticationError, BlobMissingError, TransientError
from chelate.checking import check_store

SCRIPT = Path(__file__).with_name("staying.py")


@pytest.fixture
def home(tmp_path):
    begin(tmp_path / "home")
    yield tmp_path
    ct.shutdown()
    for path in (tmp_path / "root").glob("*"):
        for pid in job_processes(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run(flow, *args):
    result = ct.get_result(ct.dispatch(flow)(*args), wait=True, timeout=60)
    assert result.status == "COMPLETED", result.error
    return result


def large_blobs(home):
    found = (home / "home").glob("blobs/??/*")
    return [path.name for path in found if path.stat().st_size > SIZE]


def on_host(home):
    """Files of large values in the host's store, by digest."""
    found = (home / "root").glob("*/cas/*/*")
    return {path.name: path for path in found if path.stat().st_size > SIZE}


def box(home, **options):
    return Box(root=str(home / "root"), **options)


def process(home, *words):
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(home / "home"), str(home / "root"), *words],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_chain_brings_home_what_is_asked_for(home):
    result = run(chain(box(home)), 7)
    data = make(7)
    assert result.result == (SIZE, data[::-1][:4])
    assert not large_blobs(home)
    store = embedding.current().store
    assert not check_store(store).findings
    ct.shutdown()  # nobody's kernel runs
    with process(home, "read", result.dispatch_id) as reader:
        assert reader.communicate(timeout=60)[0].strip() == hashlib.sha256(data).hexdigest()
    assert len(large_blobs(home)) == 1
    pins = {path.name.partition(".")[0] for path in (home / "root").glob("here/held/*")}
    assert pins == on_host(home).keys() - set(large_blobs(home)), "what came is pinned no more"
    begin(home / "home")
    assert ct.get_result(result.dispatch_id).get_node_result("turned")["output"] == data[::-1]


@pytest.mark.parametrize(
    ("options", "last"),
    [({"results": "store"}, None), ({"names": ["a", "b"]}, None), ({}, "local")],
    ids=["store", "several hosts", "needed elsewhere"],
)
def test_what_comes_home_at_once(home, options, last):
    executor = box(home, **options)
    a = ct.electron(make, executor=executor)
    b = ct.electron(len, executor=last or executor)

    @ct.lattice
    def flow(n):
        return b(a(n))

    assert run(flow, 7).result == SIZE
    assert len(large_blobs(home)) == 1
    assert not list((home / "root").glob("*/held/*"))


def test_another_executor_needs_it_after_all(home, monkeypatch):
    first = run(chain(box(home)), 7)
    asked = []

    async def cut(self, argv, stdin=b""):
        left = SIZE // 3
        async with contextlib.aclosing(stream(self, argv, stdin)) as pieces:
            async for piece in pieces:
                if "value" in argv:
                    if len(asked) < 3 and left < len(piece):
                        asked.append(stdin)
                        raise TransientError("The connection was cut.")
                    left -= len(piece)
                yield piece

    stream = Named.stream
    monkeypatch.setattr(Named, "stream", cut)
    again = ct.get_result(replaced(first.dispatch_id), wait=True, timeout=60)
    assert again.result == ("here", SIZE), again.error
    assert again.get_node_result("turned")["reused_from"] is not None
    assert len(asked) == 3
    offsets = [int(text.rpartition(b":")[2].strip(b" }")) for text in asked]
    assert offsets == sorted(set(offsets)), "each try goes on where the last one ended"
    assert len(large_blobs(home)) == 1, "only what was needed has come"


def test_a_kernel_that_is_killed_on_the_way(home):
    first = run(chain(box(home)), 7)
    ct.shutdown()
    with process(home, "redispatch", first.dispatch_id) as kernel:
        assert kernel.stdout is not None
        dispatch_id = kernel.stdout.readline().strip()
        assert kernel.stdout.readline() == "half\n"
        kernel.kill()
    assert [path.stat().st_size > SIZE // 4 for path in (home / "home" / "fetching").iterdir()]
    begin(home / "home")
    again = ct.get_result(dispatch_id, wait=True, timeout=60)
    assert again.result == ("here", SIZE), again.error
    assert not list((home / "home" / "fetching").iterdir())
    assert not check_store(embedding.current().store).findings


def test_a_cancel_on_the_way(home, monkeypatch):
    first = run(chain(box(home)), 7)
    monkeypatch.setattr(Named, "stream", halting)
    dispatch_id = replaced(first.dispatch_id)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in (home / "home").glob("fetching/*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ct.cancel(dispatch_id)
    again = ct.get_result(dispatch_id, wait=True, timeout=20)
    assert again.status == "CANCELLED"


def test_a_value_that_is_gone(home):
    executor = box(home)
    a = ct.electron(make, executor=executor)
    gate = ct.electron(waiting, executor="local")
    b = ct.electron(turned, executor=executor)
    c = ct.electron(len, executor=executor)

    @ct.lattice
    def flow(n, path):
        return c(b(a(n), gate(path)))

    dispatch_id = ct.dispatch(flow)(7, str(home / "open"))
    deadline = time.monotonic() + 60
    while not any(
        row.status == "COMPLETED" for row in embedding.current().nodes(dispatch_id, [0]).values()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ((digest, path),) = on_host(home).items()
    path.unlink()
    (home / "open").touch()
    result = ct.get_result(dispatch_id, wait=True, timeout=60)
    node = result.get_node_result("turned")
    assert (node["status"], node["reason"]) == ("FAILED", "RESULT_MISSING")
    for word in (digest, "here", "node 0", "'turned'"):
        assert word in node["error"], node["error"]
    with pytest.raises(BlobMissingError, match="no longer there"):
        result.get_node_result("make")["output"]
    again = ct.redispatch(dispatch_id, reuse_previous_results=True)()
    again = ct.get_result(again, wait=True, timeout=60)
    assert again.result == SIZE, again.error
    for path in on_host(home).values():
        path.unlink()  # a purge that nobody has noticed
    third = ct.redispatch(again.dispatch_id, reuse_previous_results=True)(8, str(home / "open"))
    assert ct.get_result(third, wait=True, timeout=60).result == SIZE


def test_looking_at_nodes_brings_nothing_home(home):
    result = run(chain(box(home)), 7)
    nodes = result.get_all_node_results()
    made = result.get_node_result("make")
    assert "2.0 MiB" in repr(made)
    assert "2.0 MiB" in pprint.pformat(made)
    assert [node["status"] for node in nodes] == ["COMPLETED"] * len(nodes)
    assert repr(result)
    result.save_result(home / "saved")
    assert not large_blobs(home)
    data = make(7)
    for plain in (pickle.loads(pickle.dumps(made)), {**made}, dict(made), made.copy()):
        assert type(plain) is dict
        assert plain["output"] == data
    for late in (result.get_node_result("turned") for _ in range(2)):
        assert late.get("output") == data[::-1]
        assert dict(late.items()) == late
    assert len(large_blobs(home)) == 2


def test_a_refused_login_and_a_full_disk_are_waited_for(home, monkeypatch):
    first = run(chain(box(home)), 7)
    monkeypatch.setattr("chelate.kernel.lanes.calls.FIRST_PAUSE", 0.3)
    fault = [AuthenticationError("The key was refused.")]

    async def failing(self, argv, stdin=b""):
        if "value" in argv and fault:
            raise fault[0]
        async with contextlib.aclosing(stream(self, argv, stdin)) as pieces:
            async for piece in pieces:
                yield piece

    stream = Named.stream
    monkeypatch.setattr(Named, "stream", failing)
    dispatch_id = replaced(first.dispatch_id)

    def said(*words):
        deadline = time.monotonic() + 60
        while True:
            rows = embedding.current().nodes(dispatch_id).values()
            told = " ".join(str(row.error) for row in rows)
            if all(word in told for word in words):
                return
            assert time.monotonic() < deadline, told
            time.sleep(0.02)

    said("result of node 2, which stayed with executor box", "key was refused")
    fault[:] = [OSError(errno.ENOSPC, "No space left on device")]
    said(f"does not fit into {home / 'home' / 'fetching'}: No space left on device")
    fault.clear()
    again = ct.get_result(dispatch_id, wait=True, timeout=60)
    assert again.result == ("here", SIZE), again.error
    assert again.get_node_result("measured")["error"] is None


def test_a_value_that_was_damaged_is_made_anew(home):
    first = run(chain(box(home)), 7)
    row = embedding.current().nodes(first.dispatch_id)[2]
    path = on_host(home)[row.output.digest]
    path.write_bytes(b"x" * row.output.size)
    late = first.get_node_result("turned")
    with pytest.raises(BlobMissingError, match="another one"):
        late["output"]
    again = ct.get_result(replaced(first.dispatch_id), wait=True, timeout=60)
    assert again.result == ("here", SIZE), again.error


def test_who_waits_for_a_value_keeps_nobody_else_from_running(home, monkeypatch):
    first = run(chain(box(home)), 7)
    away = [True]

    async def failing(self, argv, stdin=b""):
        if "value" in argv and away:
            raise TransientError("The host is away.")
        async with contextlib.aclosing(stream(self, argv, stdin)) as pieces:
            async for piece in pieces:
                yield piece

    stream = Named.stream
    monkeypatch.setattr(Named, "stream", failing)
    other = box(home, names=["other"], slots=1)
    new = ct.electron(len, executor=other)
    waits = ct.redispatch(
        first.dispatch_id, replace_electrons={"measured": new}, reuse_previous_results=True
    )()
    deadline = time.monotonic() + 60
    while not any(row.error for row in embedding.current().nodes(waits).values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    flow = ct.lattice(lambda n: ct.electron(abs, executor=other)(n))
    assert run(flow, -3).result == 3
    away.clear()
    assert ct.get_result(waits, wait=True, timeout=60).result == SIZE


class Packing(Box):
    name = "packing"
    limits = dataclasses.replace(Box.limits, pack=4, gather=1.0)


def test_only_the_task_whose_value_is_gone_fails_of_a_pack(home):
    embedding.current().plugins.register_class(Packing)
    executor = Packing(root=str(home / "root"))
    a = ct.electron(make, executor=executor)
    gate = ct.electron(waiting, executor="local")
    b = ct.electron(lambda data, _: len(data), executor=executor)

    @ct.lattice
    def flow(path):
        opened = gate(path)
        return [b(a(n), opened) for n in (1, 2, 3)]

    dispatch_id = ct.dispatch(flow)(str(home / "open"))
    gateway = embedding.current()
    deadline = time.monotonic() + 60
    while len(on_host(home)) < 3 or len(gateway.store.held(None)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    made = gateway.graph(gateway.record(dispatch_id)).nodes
    second = [node.id for node in made if node.name == "make"][1]
    on_host(home)[gateway.nodes(dispatch_id)[second].output.digest].unlink()
    (home / "open").touch()
    result = ct.get_result(dispatch_id, wait=True, timeout=60)
    ends = [n["status"] for n in result.get_all_node_results() if "lambda" in n["node_name"]]
    assert ends == ["COMPLETED", "FAILED", "COMPLETED"], result.error


def test_held_values_are_swept_later(make_host):
    host = make_host(cold=True, keep=3600.0, results="host")

    async def main():
        await host.jobs.probe()
        jobs = [host.maker.job(make, n) for n in (1, 2)]
        for job in jobs:
            job.tasks[0].stay = True
        outcomes = await host.run(*jobs)
        assert all(outcome.held > SIZE for outcome in outcomes)
        await host.jobs.release([job.key for job in jobs])
        places = [host.root / "cas" / o.digest[:2] / o.digest for o in outcomes]

        async def sweep(days):
            then = time.time() - days * 86400.0
            for path in host.root.glob("cas/*/*"):
                os.utime(path, (then, then))
            await host.jobs.sweep()
            return [path.exists() for path in places]

        target = host.spool / "fetched"
        await host.jobs.fetch(jobs[0].key, outcomes[0].digest, target)
        assert target.stat().st_size == outcomes[0].held
        assert await sweep(29) == [False, True]
        assert await sweep(31) == [False, False]
        assert not list((host.root / "held").iterdir())

    asyncio.run(main())


def test_a_fetch_takes_little_memory(make_host):
    host = make_host(results="host")

    async def main():
        job = host.maker.job(bytes, 100 << 20)
        job.tasks[0].stay = True
        await host.start(job)
        (outcome,) = await host.outcomes(job)
        assert outcome.held > 100 << 20
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await host.jobs.fetch(job.key, outcome.digest, host.spool / "fetched")
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    assert asyncio.run(main()) < 48
    (host.spool / "fetched").unlink()
