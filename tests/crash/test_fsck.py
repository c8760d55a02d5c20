"""``chelate fsck``: no finding on a sound store, and the right one on every damaged one."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.services.postgres import PostgresServer, postgres_server, postgres_url

from chelate.checking import Finding, Report, check_store
from chelate.cli import main
from chelate.errors import StoreUnavailableError
from chelate.store import SQLStore

__all__ = ["postgres_server", "postgres_url"]

SCRIPT = Path(__file__).with_name("varied.py")


def start(home: Path, url: str = "", rounds: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(home), url, str(rounds)],
        stdout=subprocess.PIPE,
        text=True,
    )


def live(home: Path, url: str = "", rounds: int = 1) -> tuple[dict[str, str], list[Report]]:
    """Let a varied life go by, checking all the while; the last round's ids and the reports."""
    reports: list[Report] = []
    with start(home, url, rounds) as process:
        try:
            while process.poll() is None:
                if url or (home / "chelate.db").exists():
                    reports += look(home, url, bool(reports))
                time.sleep(0.2)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    return json.loads(output), reports


def look(home: Path, url: str, there: bool) -> list[Report]:
    try:
        return [check(home, url)]
    except StoreUnavailableError:
        assert not there, "it is just being created"
        return []


def check(home: Path, url: str = "", **options) -> Report:
    store = SQLStore(url, home)
    try:
        return check_store(store, **options)
    finally:
        store.close()


@pytest.fixture(scope="module")
def varied(tmp_path_factory) -> tuple[Path, dict[str, str], list[Report]]:
    home = tmp_path_factory.mktemp("varied")
    ids, reports = live(home)
    return home, ids, reports


@pytest.fixture
def home(varied, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(varied[0], tmp_path / "home"))


@pytest.fixture
def ids(varied) -> dict[str, str]:
    return varied[1]


def change(home: Path, statement: str, *values: object) -> None:
    link = sqlite3.connect(home / "chelate.db")
    with link:
        assert link.execute(statement, values).rowcount > 0
    link.close()


def value_of(home: Path, question: str, *values: object):
    link = sqlite3.connect(home / "chelate.db")
    try:
        return link.execute(question, values).fetchone()[0]
    finally:
        link.close()


def found(report: Report, invariant: str) -> list[Finding]:
    return [item for item in report.findings if item.invariant == invariant]


def test_a_living_store_has_no_finding(varied) -> None:
    home, _, reports = varied
    assert reports
    assert [report.findings for report in reports if report.findings] == []
    assert any(report.nodes for report in reports), "checked while it ran"
    closed = check(home)
    assert closed.findings == []
    assert closed.nodes > 30
    assert closed.waiting == []
    assert closed.hashed > 2_000_000


def test_a_store_on_postgres_has_no_finding_and_a_damaged_one_has(
    tmp_path: Path, postgres_server: PostgresServer, postgres_url: str
) -> None:
    ids, reports = live(tmp_path, postgres_url)
    assert [report.findings for report in reports if report.findings] == []
    assert any(report.nodes for report in reports)
    assert check(tmp_path, postgres_url).findings == []
    name = postgres_url.partition("@/")[2].partition("?")[0]
    for invariant, statement in (
        ("I3", "UPDATE nodes SET key = 'other' WHERE dispatch_id = '{good}' AND node_id = 0"),
        ("I9", "UPDATE dispatches SET status = 'FAILED' WHERE dispatch_id = '{good}'"),
        ("I12", "DELETE FROM events WHERE dispatch_id = '{good}'"),
        ("I7", "DELETE FROM blobs"),
        ("store", "UPDATE nodes SET reason = 'TIRED' WHERE dispatch_id = '{good}'"),
        ("store", "UPDATE dispatches SET created_at = -1 WHERE dispatch_id = '{good}'"),
        ("I13", "DELETE FROM dispatches WHERE dispatch_id = '{good}'"),
    ):
        postgres_server.psql(name, statement.format(**ids))
        report = check(tmp_path, postgres_url)
        assert ids["good"] in {item.dispatch_id for item in found(report, invariant)}, statement


DAMAGES = [
    ("I1", "good", "UPDATE dispatches SET status = 'RUNNING' WHERE dispatch_id = ?"),
    ("I3", "good", "UPDATE nodes SET key = 'other' WHERE dispatch_id = ? AND node_id = 0"),
    ("I3", "bad", "UPDATE nodes SET attempt = 9 WHERE dispatch_id = ? AND node_id = 0"),
    ("I3", "bad", "UPDATE nodes SET attempts = NULL WHERE dispatch_id = ? AND attempt > 1"),
    ("I4", "good", "INSERT INTO events (dispatch_id, epoch, at, turn, changes) "
     "VALUES (?, 9, 0, 't', '[[0, \"FAILED\"]]')"),
    ("I4", "whole", "INSERT INTO events (dispatch_id, epoch, at, turn, changes) "
     "VALUES (?, 9, 0, 't', '[[null, \"COMPLETED\"]]')"),
    ("I5", "whole", "INSERT INTO events (dispatch_id, epoch, at, turn, changes) "
     "VALUES (?, 0, 0, 't', '[[2, \"SUBMITTING\"]]')"),
    ("I6", "good", "UPDATE nodes SET status = 'FAILED' WHERE dispatch_id = ? AND node_id = 2"),
    ("I7", "good", "UPDATE dispatches SET graph = 'nothing' WHERE dispatch_id = ?"),
    ("I7", "bad", "DELETE FROM blobs WHERE digest = (SELECT exception FROM nodes "
     "WHERE dispatch_id = ? AND exception IS NOT NULL)"),
    ("I7", "good", "UPDATE blobs SET data = X'00' WHERE digest = "
     "(SELECT inputs FROM dispatches WHERE dispatch_id = ?)"),
    ("I7", "good", "UPDATE blobs SET data = X'00' WHERE digest = "
     "(SELECT graph FROM dispatches WHERE dispatch_id = ?)"),
    ("I7", "good", "UPDATE nodes SET output = NULL WHERE dispatch_id = ? AND node_id = 0"),
    ("I9", "good", "UPDATE dispatches SET status = 'CANCELLED' WHERE dispatch_id = ?"),
    ("I9", "good", "UPDATE dispatches SET result = NULL WHERE dispatch_id = ?"),
    ("I9", "good", "DELETE FROM nodes WHERE dispatch_id = ? AND node_id = 0"),
    ("I10", "good", "UPDATE dispatches SET counts = '{\"COMPLETED\": 1}' WHERE dispatch_id = ?"),
    ("I10", "good", "UPDATE nodes SET node_id = 77 WHERE dispatch_id = ? AND node_id = 0"),
    ("I10", "good", "UPDATE nodes SET child_id = 'x' WHERE dispatch_id = ? "
     "AND child_id IS NOT NULL"),
    ("I11", "good", "UPDATE events SET epoch = 7 WHERE seq = "
     "(SELECT min(seq) FROM events WHERE dispatch_id = ?)"),
    ("I12", "good", "UPDATE nodes SET status = 'CANCELLED' WHERE dispatch_id = ? AND node_id = 0"),
    ("I12", "good", "UPDATE events SET changes = '[]' WHERE dispatch_id = ?"),
    ("I12", "whole", "UPDATE events SET turn = 't' WHERE dispatch_id = ? "
     "AND turn LIKE 'cancel:%'"),
    ("I13", "whole", "UPDATE dispatches SET cancel_requested = 0 WHERE dispatch_id = ?"),
    ("I13", "good", "DELETE FROM dispatches WHERE dispatch_id = ?"),
    ("I16", "bad", "UPDATE nodes SET attempts = '[{\"reason\": \"USER_ERROR\"}]' "
     "WHERE dispatch_id = ? AND node_id = 0"),
    ("I17", "again", "UPDATE nodes SET reused_from = '[\"x\", 0]' WHERE dispatch_id = ? "
     "AND reused_from IS NOT NULL"),
]  # fmt: skip


@pytest.mark.parametrize(("invariant", "which", "statement"), DAMAGES)
def test_a_damaged_store_is_found_out(home, ids, invariant, which, statement) -> None:
    change(home, statement, ids[which])
    report = check(home)
    assert ids[which] in {item.dispatch_id for item in found(report, invariant)}, report.findings
    assert all(item.what and item.advice for item in report.findings)


def test_a_child_that_outlives_its_parent(home, ids) -> None:
    change(home, "UPDATE dispatches SET status = 'RUNNING' WHERE parent_id = ?", ids["good"])
    assert {item.dispatch_id for item in found(check(home), "I2")} == {ids["good"]}


def test_events_that_are_gone(home) -> None:
    change(home, "UPDATE events SET seq = 0 WHERE seq = 1")
    assert found(check(home), "I12")[-1].what.endswith("1 are missing.")
    change(home, "DELETE FROM events WHERE seq = 3")
    assert found(check(home), "I12")[-1].what.endswith("2 are missing.")


def test_processes_of_what_has_ended(home, ids) -> None:
    question = "SELECT key FROM nodes WHERE dispatch_id = ? AND status = ? AND key IS NOT NULL"
    ended = value_of(home, question, ids["good"], "COMPLETED")
    cancelled = value_of(home, question, ids["whole"], "CANCELLED")
    change(home, "UPDATE dispatches SET status = 'CANCELLING' WHERE dispatch_id = ?", ids["whole"])
    strays = [
        subprocess.Popen(["sleep", "60"], env={**os.environ, "CHELATE_TASK_KEY": key})
        for key in (ended, cancelled)
    ]
    try:
        report = check(home)
        for invariant, which, stray in (("I2", "good", strays[0]), ("I8", "whole", strays[1])):
            (item,) = found(report, invariant)
            assert item.dispatch_id == ids[which]
            assert str(stray.pid) in item.what
    finally:
        for stray in strays:
            stray.kill()
            stray.wait()


def test_files_that_changed(home, ids) -> None:
    size = "SELECT output FROM nodes WHERE dispatch_id = ? AND output LIKE '%,2000___,%'"
    digest = json.loads(value_of(home, size, ids["good"]))[0]
    path = home / "blobs" / digest[:2] / digest
    data = path.read_bytes()

    def damage(change: Callable[[], object], word: str, quick: bool) -> None:
        change()
        for report in [check(home)] + [check(home, quick=True)] * quick:
            items = found(report, "I7")
            assert {ids["good"], ids["again"]} & {item.dispatch_id for item in items}
            assert digest in items[0].what
            assert word in items[0].what
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        assert check(home).findings == []

    def lead_nowhere() -> None:
        path.unlink()
        path.symlink_to(home / "nowhere")

    damage(lead_nowhere, "is missing", True)
    damage(lambda: path.write_bytes(b"X" + data[1:]), "does not match", False)
    damage(lambda: path.write_bytes(data[:-1]), "does not match", False)
    damage(path.unlink, "is missing", True)


def test_a_planted_secret(home) -> None:
    change(home, "UPDATE dispatches SET error = 'token hunter2 refused'")
    (home / "blobs" / "ab").mkdir(exist_ok=True)
    (home / "blobs" / "ab" / ("ab" * 32)).write_bytes(b"." * 100 + b"hunter2")
    report = check(home, patterns=[re.compile(rb"nobody"), re.compile(rb"hunter\d")])
    items = found(report, "I15")
    assert any("column error" in item.what for item in items)
    assert any("ababab" in item.what for item in items)
    assert all("pattern 2" in item.what and "hunter" not in item.what for item in items)


def test_values_that_nothing_refers_to_are_no_finding(home) -> None:
    before = check(home)
    digest = "ab" * 32
    (home / "blobs" / "ab").mkdir(exist_ok=True)
    stray = home / "blobs" / "ab" / digest
    stray.write_bytes(b"left over")
    os.utime(stray, (1, 1))
    quick = check(home, quick=True)
    assert quick.findings == []
    assert quick.unused == before.unused + 1
    assert quick.unused_age is not None
    assert quick.unused_age > 1e8


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE nodes SET attempts = '[7]' WHERE dispatch_id = ?",
        "UPDATE nodes SET reused_from = '[]' WHERE dispatch_id = ?",
        "UPDATE events SET changes = '[1]' WHERE dispatch_id = ?",
        "UPDATE events SET changes = '{' WHERE dispatch_id = ?",
        "UPDATE dispatches SET options = '[]' WHERE dispatch_id = ?",
        'UPDATE dispatches SET counts = \'{"COMPLETED": "x"}\' WHERE dispatch_id = ?',
        "UPDATE dispatches SET created_at = 'yesterday' WHERE dispatch_id = ?",
        "UPDATE dispatches SET ended_at = -1 WHERE dispatch_id = ?",
        "UPDATE dispatches SET dispatch_id = X'FF' WHERE dispatch_id = ?",
        "UPDATE dispatches SET depth = 'x' WHERE dispatch_id = ?",
        "UPDATE nodes SET started_at = 1e300 WHERE dispatch_id = ? AND started_at IS NOT NULL",
        "UPDATE nodes SET reason = 'TIRED' WHERE dispatch_id = ?",
        "UPDATE nodes SET handle = '{}' WHERE dispatch_id = ? AND handle IS NOT NULL",
        "UPDATE nodes SET executor = '' WHERE dispatch_id = ? AND handle IS NOT NULL",
        "UPDATE nodes SET attempts = '[{}]' WHERE dispatch_id = ?",
        "UPDATE events SET dispatch_id = X'FF' WHERE dispatch_id = ?",
        "UPDATE facts SET value = '{' WHERE name = 'store-id' OR name = ?",
        "UPDATE facts SET name = X'FF' WHERE name = 'store-id' OR name = ?",
        "UPDATE blobs SET size = 'x' WHERE digest = "
        "(SELECT inputs FROM dispatches WHERE dispatch_id = ?)",
        "UPDATE blobs SET data = 7 WHERE digest = "
        "(SELECT inputs FROM dispatches WHERE dispatch_id = ?)",
    ],
)
def test_rows_of_another_form(home, ids, statement) -> None:
    change(home, statement, ids["good"])
    assert found(check(home), "store")


def test_a_sub_dispatch_in_another_place(home, ids) -> None:
    change(home, "UPDATE dispatches SET depth = 3 WHERE parent_id = ?", ids["good"])
    assert any("stored at depth 3" in item.what for item in found(check(home), "I10"))
    change(home, "UPDATE dispatches SET root_id = 'x' WHERE dispatch_id = ?", ids["bad"])
    assert {item.dispatch_id for item in found(check(home), "I10")} > {ids["bad"]}


def test_a_schema_that_holds_no_text(fsck, home) -> None:
    with closing(sqlite3.connect(home / "chelate.db")) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        damage = "UPDATE sqlite_master SET sql = CAST(X'C3D3' AS TEXT) WHERE name = 'facts'"
        connection.execute(damage)
        connection.commit()
    answer = fsck(home)
    assert answer.returncode in (1, 2)
    assert "damaged" in answer.stdout + answer.stderr


def test_a_dispatch_that_lost_its_graph(home, ids) -> None:
    change(home, "UPDATE dispatches SET graph = NULL WHERE dispatch_id = ?", ids["good"])
    assert [item.dispatch_id for item in found(check(home), "I7")] == [ids["good"]]


def test_a_database_with_flipped_bytes_or_unreadable_rows(home, ids) -> None:
    change(home, "UPDATE nodes SET status = 'TIRED' WHERE dispatch_id = ?", ids["bad"])
    assert any(ids["bad"] in item.what for item in found(check(home), "store"))
    path = home / "chelate.db"
    data = bytearray(path.read_bytes())
    for page in range(2, len(data) // 4096, 3):
        data[page * 4096 : page * 4096 + 200] = os.urandom(200)
    path.write_bytes(data)
    report = check(home)
    assert found(report, "store")


@pytest.mark.large
@pytest.mark.timeout(900)
def test_a_hundred_thousand_tasks_take_less_than_ten_seconds(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), "", "1", "25000"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=800)
    for quick in (False, True):
        started = time.process_time()
        report = check(tmp_path, quick=quick)
        spent = time.process_time() - started
        assert report.findings == []
        assert report.nodes > 100_000
        assert spent < 10, f"{spent:.1f} s of CPU, {report.seconds:.1f} s by the clock"


# -- the command ------------------------------------------------------------------------------


class Answer(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def fsck(monkeypatch, capsys) -> Callable[..., Answer]:
    def run(home: Path, *arguments: str) -> Answer:
        monkeypatch.setenv("CHELATE_HOME", str(home))
        code = main(["fsck", *arguments])
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return run


def test_the_command(fsck, home, ids) -> None:
    names = [home / "chelate.db", *(home / "blobs").rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in names}
    clean = fsck(home)
    assert (clean.returncode, clean.stderr) == (0, "")
    assert clean.stdout.startswith("No findings in ")
    assert {path: path.stat().st_mtime_ns for path in names} == before, "nothing is written"
    change(home, "UPDATE dispatches SET status = 'FAILED' WHERE dispatch_id = ?", ids["good"])
    bad = fsck(home, "--store", f"sqlite:///{home}/chelate.db")
    assert bad.returncode == 1
    assert f"I9 {ids['good']}: It is FAILED" in bad.stdout
    document = fsck(home, "--json", "--secret-pattern", "noth.ng")
    assert document.returncode == 1
    findings = json.loads(document.stdout)["findings"]
    assert {item["invariant"] for item in findings} == {"I9", "I12"}


def test_the_command_when_there_is_nothing_to_check(fsck, home, tmp_path) -> None:
    nowhere = fsck(tmp_path / "nowhere")
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "There is no store" in nowhere.stderr
    assert not (tmp_path / "nowhere").exists()
    link = sqlite3.connect(home / "chelate.db")
    link.execute("PRAGMA user_version = 99")
    link.close()
    newer = fsck(home, "--json")
    assert newer.returncode == 2
    assert json.loads(newer.stdout)["type"] == "SchemaTooNewError"
    assert fsck(home, "--secret-pattern", "(").returncode == 2
    (home / "chelate.db").write_text("not a database " * 500)
    assert fsck(home).returncode == 2
