"""Directories: every event, exact counts, restarts, directories that go."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chelate.triggers.tree import CLOSED, NEW, WRITTEN, differences, scan

Watch = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "watched").mkdir()
    return tmp_path / "watched"


@pytest.fixture
def watch(ct: Any, held: Callable[[], str], folder: Path) -> Watch:
    def register(*names: str, path: Path | None = None, **options: Any) -> Any:
        trigger = ct.triggers.DirTrigger(path or folder, list(names), **options)
        trigger.lattice_dispatch_id = held()
        trigger.register()
        return trigger

    return register


def fires(ct: Any, trigger: Any) -> int:
    (row,) = ct.list_triggers(trigger.lattice_dispatch_id)
    assert row.state in ("active", "unowned"), row
    return int(row.fires)


def settles(ct: Any, trigger: Any, expected: int) -> None:
    deadline = time.monotonic() + 60
    while fires(ct, trigger) < expected and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.2)
    assert fires(ct, trigger) == expected


def test_each_event_by_name(ct: Any, watch: Watch, folder: Path) -> None:
    (folder / "old").write_text("x")
    kinds = {name: watch(name) for name in ("created", "deleted", "modified", "moved", "closed")}
    time.sleep(0.5)
    (folder / "new").write_text("hello")  # created, modified, closed
    with (folder / "old").open("a") as file:  # modified, closed
        file.write("y")
    (folder / "old").rename(folder / "older")  # moved
    (folder / "older").unlink()  # deleted
    expected = {"created": 1, "deleted": 1, "modified": 2, "moved": 1, "closed": 2}
    for name, times in expected.items():
        settles(ct, kinds[name], times)


def test_reading_is_no_event(ct: Any, watch: Watch, folder: Path) -> None:
    (folder / "old").write_text("x")
    trigger = watch("created", "deleted", "modified", "moved", "closed")
    time.sleep(0.3)
    for _ in range(5):
        (folder / "old").read_text()
        list(folder.iterdir())
    settles(ct, trigger, 0)


def test_a_burst_of_500_files_is_counted_exactly(ct: Any, watch: Watch, folder: Path) -> None:
    single, tens, odd = (
        watch("created"),
        watch("created", batch_size=10),
        watch("created", batch_size=7),
    )
    started = time.monotonic()
    for number in range(500):
        (folder / str(number)).write_text("x")
    assert time.monotonic() - started < 5
    settles(ct, tens, 50)
    settles(ct, odd, 71)
    settles(ct, single, 500)
    assert odd.n_changes == 500 - 71 * 7
    assert tens.n_changes == 0


def test_files_that_come_and_go_at_once_count(ct: Any, watch: Watch, folder: Path) -> None:
    trigger = watch("created", "deleted")
    time.sleep(0.3)
    for _ in range(20):
        (folder / "same").write_text("x")
        (folder / "same").unlink()
    settles(ct, trigger, 40)


def test_what_happened_while_no_kernel_ran_is_counted_once(
    ct: Any, watch: Watch, folder: Path
) -> None:
    for name in ("kept", "changed", "gone", "renamed"):
        (folder / name).write_text(name)
    kinds = {name: watch(name) for name in ("created", "deleted", "modified", "moved", "closed")}
    (folder / "live").write_text("x")
    settles(ct, kinds["created"], 1)
    ct.shutdown()
    (folder / "later").write_text("x")
    (folder / "changed").write_text("something else")
    (folder / "gone").unlink()
    (folder / "renamed").rename(folder / "other name")
    for _ in range(2):
        ct.dispatch(ct.lattice(lambda: None, name="wakes_the_kernel"))()
        expected = {"created": 2, "deleted": 1, "modified": 3, "moved": 1, "closed": 3}
        for name, times in expected.items():
            settles(ct, kinds[name], times)
        ct.shutdown()


def test_sub_directories_only_when_asked(ct: Any, watch: Watch, folder: Path) -> None:
    (folder / "below").mkdir()
    flat, deep = watch("created"), watch("created", recursive=True)
    time.sleep(0.3)
    (folder / "below" / "file").write_text("x")
    (folder / "new").mkdir()
    time.sleep(0.3)
    (folder / "new" / "file").write_text("x")
    settles(ct, flat, 1)
    settles(ct, deep, 3)


def test_one_file_is_watched_through_replacement(ct: Any, watch: Watch, folder: Path) -> None:
    (folder / "config").write_text("1")
    trigger = watch("modified", "moved", path=folder / "config")
    time.sleep(0.3)
    (folder / "other").write_text("x")
    (folder / "config").write_text("22")
    settles(ct, trigger, 1)
    (folder / "draft").write_text("333")
    (folder / "draft").rename(folder / "config")  # as editors save
    settles(ct, trigger, 2)


def test_a_directory_that_goes_shows_and_comes_back(
    ct: Any, watch: Watch, folder: Path, until: Any
) -> None:
    trigger = watch("created")
    row = lambda: ct.list_triggers(trigger.lattice_dispatch_id)[0]  # noqa: E731
    shutil.rmtree(folder)
    until(lambda: row().state == "failing", 30)
    assert "watched" in row().last_error
    folder.mkdir()
    (folder / "file").write_text("x")
    until(lambda: row().state == "active", 30)
    settles(ct, trigger, 1)


def test_hundreds_cost_no_thread_each(ct: Any, watch: Watch, tmp_path: Path) -> None:
    before = threading.active_count()
    made = []
    for number in range(60):
        (tmp_path / f"d{number}").mkdir()
        made.append(watch("created", path=tmp_path / f"d{number}"))
    for number in range(60):
        (tmp_path / f"d{number}" / "file").write_text("x")
    for trigger in made[::9]:
        settles(ct, trigger, 1)
    assert threading.active_count() - before < 50  # 16 watches, 8 pollers, the kernel and its store
    ct.stop_triggers([trigger.lattice_dispatch_id for trigger in made])
    time.sleep(1)
    assert not [t.name for t in threading.enumerate() if "Inotify" in type(t).__name__]


def test_the_handler_gets_the_methods_that_were_asked_for(folder: Path) -> None:
    from watchdog.events import FileCreatedEvent, FileDeletedEvent

    from chelate.triggers import DirTrigger

    trigger = DirTrigger(folder, ["created"], batch_size=3)
    trigger.validate()
    look = trigger.check(None, 0.0)
    trigger.attach_methods_to_handler()
    trigger.event_handler.on_created(FileCreatedEvent(str(folder / "a")))
    trigger.event_handler.on_created(FileCreatedEvent(str(folder / "b")))
    trigger.event_handler.on_deleted(FileDeletedEvent(str(folder / "b")))
    look = trigger.check(look.cursor, 1.0)
    assert (look.fires, trigger.n_changes) == (0, 2)
    trigger.event_handler.on_created(FileCreatedEvent(str(folder / "c")))
    look = trigger.check(look.cursor, 2.0)
    assert (look.fires, trigger.n_changes) == (1, 0)
    trigger.release()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dir_path": "/does/not/exist"}, "'/does/not/exist' does not exist"),
        ({"event_names": ["opened"]}, "no event 'opened'"),
        ({"event_names": []}, "at least one event"),
        ({"event_names": None}, "at least one event"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
        ({"recursive": "yes"}, "recursive='yes'"),
        ({"overlap": "maybe"}, "overlap='maybe'"),
        ({"max_concurrent": 0}, "max_concurrent=0"),
        ({"max_concurrent": 2, "overlap": "allow"}, "against max_concurrent=2"),
    ],
)
def test_bad_input_is_refused_at_registration(
    ct: Any, held: Any, folder: Path, options: dict[str, Any], words: str
) -> None:
    given = {"dir_path": folder, "event_names": ["created"], **options}
    with pytest.raises(ct.errors.ConfigError) as caught:
        ct.triggers.DirTrigger(**given, lattice_dispatch_id=held()).register()
    assert words in str(caught.value)
    assert not ct.list_triggers()


def test_differences_of_two_scans(folder: Path) -> None:
    for name in ("same", "changed", "gone", "moved", "empty"):
        (folder / name).write_text(name)
    (folder / "sub").mkdir()
    old = scan(str(folder), None, False)
    assert not list(differences(old, scan(str(folder), None, False)))
    (folder / "changed").write_text("x")
    (folder / "gone").unlink()
    (folder / "moved").rename(folder / "moved-away")
    (folder / "void").touch()
    (folder / "sub").rmdir()
    found = sorted(differences(old, scan(str(folder), None, False)))
    # the new, empty file was closed after it was made; nothing was written to it
    assert found == sorted(
        ["modified", "closed", "deleted", "moved", "created", "closed", "deleted"]
    )


@pytest.mark.parametrize(
    ("mark", "events"), [(NEW, ["modified", "closed"]), (WRITTEN, ["closed"]), (CLOSED, [])]
)
def test_a_kernel_that_died_between_two_events(folder: Path, mark: str, events: list[str]) -> None:
    (folder / "file").write_text("x")
    new = scan(str(folder), None, False)
    old = {"file": [*new["file"][:3], mark] if mark != NEW else [new["file"][0], 0, 0, NEW]}
    assert list(differences(old, new)) == events
