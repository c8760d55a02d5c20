"""Plugin loading, against fabricated distributions on disk: a bad one breaks nothing but itself."""

from __future__ import annotations

import importlib
import logging
import sys
import textwrap
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pluggy
import pytest

from chelate import api
from chelate.contracts import hookspecs
from chelate.errors import (
    ConfigError,
    PluginConflictError,
    PluginLoadError,
    PluginNotFoundError,
    RejectedError,
)
from chelate.kernel.plugins import discovery
from chelate.kernel.plugins.discovery import BUILT_IN
from chelate.kernel.plugins.registry import KNOWN_PLUGINS, Plugins
from chelate.model import DispatchRecord, ExecutorRef, NodeRecord, Reason

EXECUTOR = """
from chelate.api import Executor, hookimpl, PollReport

class Good(Executor):
    name = "{name}"
    async def run(self, jobs):
        return
        yield
    async def poll(self, handles):
        return PollReport(frozenset(), {{}})
    async def cancel(self, handles, *, force):
        pass
    async def collect(self, handles):
        return
        yield

@hookimpl
def chelate_register_executors():
    return [Good]
"""
REGISTER = "from chelate.api import hookimpl\n@hookimpl\ndef chelate_register_executors():\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch) -> Callable[..., None]:
    """Lay a distribution on the path: its metadata, and one module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def lay(distribution: str, entry_points: str, module: str | None = None, code: str = ""):
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        )
        (info / "entry_points.txt").write_text(f"[chelate]\n{entry_points}\n")
        if module:
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))

    yield lay
    for name in set(sys.modules) - before:
        if name.startswith("made_up_"):
            del sys.modules[name]


def row(plugins: Plugins, name: str):
    return next(row for row in plugins.report() if row.name == name)


def test_a_plugin_is_imported_when_its_name_is_first_asked_for(install) -> None:
    install("chelate-one", "one = made_up_one", "made_up_one", EXECUTOR.format(name="one"))
    install("chelate-two", "two = made_up_two", "made_up_two", "raise RuntimeError('too early')")
    plugins = Plugins()
    assert "made_up_one" not in sys.modules
    assert plugins.executor("one").name == "one"
    assert plugins.executor("one") is plugins.executor("one")
    found = row(plugins, "one")
    assert (found.kind, found.distribution, found.version, found.status) == (
        "executor",
        "chelate-one",
        "1.2",
        "ok",
    )


BAD = {
    "raises at import": ("raise ValueError('kaput')", "import", "ValueError: kaput"),
    "exits at import": ("import sys; sys.exit(3)", "import", "SystemExit: 3"),
    "import of a missing library": ("import no_such_library", "import", "no_such_library"),
    "syntax error": ("def f(:", "import", "SyntaxError"),
    "no hook at all": ("x = 1", "register", "implements no hook"),
    "forgotten marker": ("def chelate_register_executors(): return []", "register", "hookimpl"),
    "unknown hook": (
        "from chelate.api import hookimpl\n@hookimpl\ndef chelate_register_executor(): return []",
        "register",
        "Did you mean chelate_register_executors?",
    ),
    "wrong argument": (
        "from chelate.api import hookimpl\n@hookimpl\ndef chelate_before_run(executor, tasks): ...",
        "register",
        "tasks",
    ),
    "default value": (
        "from chelate.api import hookimpl\n@hookimpl\ndef chelate_before_run(jobs=()): ...",
        "register",
        "'jobs' has a default value",
    ),
    "coroutine": (
        "from chelate.api import hookimpl\n@hookimpl\nasync def chelate_before_run(jobs): ...",
        "register",
        "coroutine function",
    ),
    "wrapper": (
        "from chelate.api import hookimpl\n@hookimpl(wrapper=True)\n"
        "def chelate_before_run(jobs):\n    yield",
        "register",
        "cannot be wrapped",
    ),
    "registration raises": (f"{REGISTER}    raise OSError('no disk')", "provide", "no disk"),
    "registration exits": (f"{REGISTER}    raise SystemExit", "provide", "SystemExit"),
    "no list": (f"{REGISTER}    return 5", "provide", "must return a list of classes"),
    "wrong base class": (f"{REGISTER}    return [dict]", "provide", "no subclass of Executor"),
    "an instance": (f"{REGISTER}    return [5]", "provide", "no subclass of Executor"),
    "methods missing": (
        "from chelate.api import Executor\n"
        f"class Bad(Executor):\n    name = 'bad'\n{REGISTER}    return [Bad]",
        "provide",
        "lacks the methods cancel, collect, poll, run",
    ),
    "no name": (
        EXECUTOR.format(name="bad").replace('    name = "bad"\n', ""),
        "provide",
        "name must be set",
    ),
    "newer major version": (
        EXECUTOR.format(name="bad").replace('name = "bad"', 'name = "bad"; api_version = (2, 0)'),
        "provide",
        "written for version 2.0",
    ),
    "newer minor version": (
        EXECUTOR.format(name="bad").replace('name = "bad"', 'name = "bad"; api_version = (1, 99)'),
        "provide",
        "written for version 1.99",
    ),
    "outdated version": (
        EXECUTOR.format(name="bad").replace('name = "bad"', 'name = "bad"; api_version = (0, 9)'),
        "provide",
        "written for version 0.9",
    ),
}


@pytest.mark.parametrize(("code", "stage", "words"), BAD.values(), ids=BAD.keys())
def test_a_broken_plugin_is_recorded_and_raised_by_name(install, code, stage, words) -> None:
    install("chelate-bad", "bad = made_up_bad", "made_up_bad", code)
    install("chelate-one", "one = made_up_one", "made_up_one", EXECUTOR.format(name="one"))
    plugins = Plugins()
    for _ in range(2):  # the answer stays the same
        with pytest.raises(PluginLoadError) as caught:
            plugins.executor("bad")
        for word in ("chelate-bad", "1.2", stage, words):
            assert word in str(caught.value)
        assert caught.value.__cause__ is not None
    found = row(plugins, "bad")
    assert found.status == "failed"
    assert words in found.error
    assert plugins.executor("one").name == "one"
    plugins.hooks.tasks_changed("d", [])


def test_an_entry_point_to_nowhere(install) -> None:
    install("chelate-bad", "bad = made_up_nowhere\nworse = made_up_bad:missing", "made_up_bad")
    plugins = Plugins()
    with pytest.raises(PluginLoadError, match="made_up_nowhere"):
        plugins.executor("bad")
    with pytest.raises(PluginLoadError, match="missing"):
        plugins.executor("worse")


def test_unreadable_metadata_of_one_distribution_hides_no_other(install, tmp_path: Path) -> None:
    install("chelate-bad", "this is no entry point")
    install("chelate-one", "one = made_up_one", "made_up_one", EXECUTOR.format(name="one"))
    plugins = Plugins()
    assert plugins.executor("one").name == "one"
    failed = [row for row in plugins.report() if row.status == "failed"]
    assert any("chelate_bad" in row.name and "unreadable" in row.error for row in failed)


def test_a_failed_plugin_leaves_no_hook_behind(install) -> None:
    code = (
        "from chelate.api import hookimpl, RejectedError\n@hookimpl\n"
        "def chelate_before_run(jobs):\n    raise RejectedError('half registered')\n"
        "@hookimpl\ndef chelate_tasks_changed(wrong): ...\n"
    )
    install("chelate-bad", "bad = made_up_bad", "made_up_bad", code)
    plugins = Plugins()
    plugins.hooks.before_run(ExecutorRef("local"), [])
    assert not plugins.hooks.implemented("before_run")


def test_two_distributions_with_one_name_are_refused_by_both_names(install) -> None:
    install("chelate-one", "same = made_up_one", "made_up_one", EXECUTOR.format(name="same"))
    install("chelate-two", "same = made_up_two", "made_up_two", EXECUTOR.format(name="same"))
    plugins = Plugins()
    with pytest.raises(PluginConflictError, match="chelate-one and chelate-two"):
        plugins.executor("same")
    assert row(plugins, "same").status == "conflict"
    assert Plugins(disable=["chelate-two"]).executor("same").__module__ == "made_up_one"


def test_nobody_can_take_the_name_of_a_built_in(install) -> None:
    install("evil", "local = made_up_one", "made_up_one", EXECUTOR.format(name="local"))
    with pytest.raises(PluginConflictError, match="chelate and evil"):
        Plugins().executor("local")


def test_one_module_under_two_names_is_registered_once(install) -> None:
    code = EXECUTOR.format(name="jobs") + (
        'class Other(Good):\n    name = "tasks"\n'
        "seen = []\n"
        "@hookimpl\ndef chelate_tasks_changed(dispatch_id):\n    seen.append(dispatch_id)\n"
    )
    code = code.replace("return [Good]", "return [Good, Other]")
    install("chelate-one", "jobs = made_up_one\ntasks = made_up_one", "made_up_one", code)
    plugins = Plugins()
    assert plugins.executor("jobs").name == "jobs"
    assert plugins.executor("tasks").name == "tasks"
    plugins.hooks.tasks_changed("d1", [])
    assert sys.modules["made_up_one"].seen == ["d1"]


def test_a_known_plugin_that_is_missing_says_what_to_install() -> None:
    plugins = Plugins(disable=[])
    missing = [
        (name, distribution)
        for (kind, name), distribution in KNOWN_PLUGINS.items()
        if kind == "executor" and not plugins._named(name)
    ]
    for name, distribution in missing:
        with pytest.raises(PluginNotFoundError, match=f"pip install {distribution}"):
            plugins.executor(name)
    assert list(KNOWN_PLUGINS) == sorted(KNOWN_PLUGINS)


def test_an_unknown_name_gets_a_suggestion_and_the_names_there_are() -> None:
    with pytest.raises(PluginNotFoundError) as caught:
        Plugins().executor("slrum")
    assert "Did you mean 'slurm'" in str(caught.value)
    with pytest.raises(PluginNotFoundError, match="local"):
        Plugins().executor("quite different")


def test_a_name_of_another_kind_is_explained(install) -> None:
    install("chelate-one", "one = made_up_one", "made_up_one", EXECUTOR.format(name="other"))
    with pytest.raises(PluginNotFoundError, match="executor 'other'"):
        Plugins().executor("one")


def test_what_was_installed_while_running_is_found(install) -> None:
    plugins = Plugins()
    with pytest.raises(PluginNotFoundError):
        plugins.executor("one")
    install("chelate-one", "one = made_up_one", "made_up_one", EXECUTOR.format(name="one"))
    assert plugins.executor("one").name == "one"


def test_switched_off_plugins_are_never_imported(install) -> None:
    install("chelate-one", "one = made_up_one", "made_up_one", EXECUTOR.format(name="one"))
    for plugins in (Plugins(disable=["one"]), Plugins(allow=["two"]), Plugins(allow=[])):
        plugins.hooks.tasks_changed("d", [])
        with pytest.raises(PluginNotFoundError, match="switched off"):
            plugins.executor("one")
        assert row(plugins, "one").status == "disabled"
    assert "made_up_one" not in sys.modules
    assert Plugins(allow=["chelate-one"]).executor("one").name == "one"


def test_built_ins_are_found_without_an_installed_distribution(monkeypatch) -> None:
    monkeypatch.setattr(discovery.metadata, "entry_points", lambda **_: ())
    found = {row.name: row for row in Plugins(disable=["chelate"]).report()}
    assert {"local", "sqlite", "postgresql"} <= found.keys()
    assert found["local"].distribution == "chelate"


def test_the_built_in_table_is_the_distributions() -> None:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

    root = Path(__file__).parents[2]
    project = toml.loads((root / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["chelate"] == BUILT_IN


# -- scripts ------------------------------------------------------------------------------------


def script_class(name: str, label: str = "Mine"):
    space: dict[str, object] = {"__name__": "made_up_script"}
    code = EXECUTOR.format(name=name).replace("Good", label)
    exec(compile(code, "script", "exec"), space)
    return space[label]


def test_a_class_of_a_script_is_found_by_its_name() -> None:
    plugins = Plugins()
    first, second = script_class("mine"), script_class("mine")
    plugins.register_class(first)
    plugins.register_class(first)
    assert plugins.executor("mine") is first
    plugins.register_class(second)  # the notebook cell ran again
    assert plugins.executor("mine") is second
    assert row(plugins, "mine").status == "ok"


def test_scripts_and_plugins_do_not_shadow_each_other(install) -> None:
    install("chelate-one", "one = made_up_one", "made_up_one", EXECUTOR.format(name="one"))
    plugins = Plugins()
    plugins.register_class(plugins.executor("one"))
    with pytest.raises(PluginConflictError, match="chelate-one"):
        plugins.register_class(script_class("one"))
    plugins.register_class(script_class("mine"))
    plugins.register_class(script_class("mine", "Another"))
    with pytest.raises(PluginConflictError, match="Another"):
        plugins.executor("mine")


@pytest.mark.parametrize("bad", [dict, api.Executor])
def test_a_class_that_is_none_is_refused(bad) -> None:
    with pytest.raises(PluginLoadError):
        Plugins().register_class(bad)


def test_registered_modules_are_heard_and_their_errors_raise_at_once() -> None:
    plugins = Plugins()
    module = types.ModuleType("made_up")
    module.chelate_tasks_changed = api.hookimpl(lambda wrong: None)
    with pytest.raises(PluginLoadError):
        plugins.register(module, "made_up")


# -- hooks --------------------------------------------------------------------------------------


class Observer:
    def __init__(self) -> None:
        self.seen: list[object] = []

    @api.hookimpl
    def chelate_tasks_changed(self, dispatch_id, changes):
        self.seen.append((dispatch_id, list(changes)))

    @api.hookimpl
    def chelate_dispatch_changed(self, change):
        self.seen.append(change)

    @api.hookimpl
    def chelate_cancel_requested(self, targets):
        self.seen.append(targets)


class Broken:
    @api.hookimpl
    def chelate_tasks_changed(self):
        raise SystemExit("no")

    @api.hookimpl
    def chelate_before_run(self):
        raise ZeroDivisionError

    @api.hookimpl
    def chelate_classify_failure(self):
        return "OOM?"


def test_one_broken_observer_keeps_no_other_from_hearing(caplog) -> None:
    plugins, observer = Plugins(), Observer()
    plugins.register(observer, "observer")
    plugins.register(Broken(), "broken")
    change, record = NodeRecord(1), DispatchRecord("d", "wf")
    with caplog.at_level(logging.ERROR, "chelate.plugins"):
        plugins.hooks.tasks_changed("d", [change])
        plugins.hooks.dispatch_changed(record)
        plugins.hooks.cancel_requested("d", None)
        plugins.hooks.before_run(ExecutorRef("local"), [])
    assert observer.seen == [("d", [change]), record, None]
    assert "broken" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_policy_refuses_with_its_own_sentence() -> None:
    class Cap:
        @api.hookimpl
        def chelate_before_run(self, executor, jobs):
            if executor.name == "dear":
                raise RejectedError("over the cap")

    plugins = Plugins()
    plugins.register(Broken(), "broken")
    plugins.register(Cap(), "cap")
    plugins.hooks.before_run(ExecutorRef("cheap"), [])
    with pytest.raises(RejectedError, match="over the cap"):
        plugins.hooks.before_run(ExecutorRef("dear"), [])


def test_the_first_reason_wins_and_nonsense_is_skipped(caplog) -> None:
    class Site:
        def __init__(self, answer):
            self.answer = answer

        @api.hookimpl
        def chelate_classify_failure(self, observation):
            return self.answer

    plugins = Plugins()
    arguments = (ExecutorRef("local"), api.Observation("k", api.JobState.KILLED), NodeRecord(0))
    assert plugins.hooks.classify_failure(*arguments) is None
    plugins.register(Site(Reason.OOM), "site")
    plugins.register(Site(None), "silent")
    plugins.register(Broken(), "broken")
    with caplog.at_level(logging.ERROR, "chelate.plugins"):
        assert plugins.hooks.classify_failure(*arguments) is Reason.OOM
    assert "not a Reason" in caplog.text


def test_nothing_is_asked_of_nobody() -> None:
    plugins = Plugins(allow=[])
    assert not plugins.hooks.implemented("tasks_changed")
    plugins.register(Observer(), "observer")
    assert plugins.hooks.implemented("tasks_changed")
    assert not plugins.hooks.implemented("before_run")


def test_an_interrupt_is_the_users_and_passes(install) -> None:
    code = "import sys\nif not hasattr(sys, 'made_up'):\n    sys.made_up = 1\n"
    code += "    raise KeyboardInterrupt\n" + EXECUTOR.format(name="one")
    install("chelate-one", "one = made_up_one", "made_up_one", code)
    plugins = Plugins()
    try:
        with pytest.raises(KeyboardInterrupt):
            plugins.executor("one")
        assert plugins.executor("one").name == "one"
    finally:
        del sys.made_up


def test_outside_the_main_thread_an_interrupt_is_the_plugins(install) -> None:
    code = "raise KeyboardInterrupt\n"
    install("chelate-one", "one = interrupts_one", "interrupts_one", code)
    plugins = Plugins()
    raised: list[BaseException] = []

    def look() -> None:
        try:
            plugins.executor("one")
        except PluginLoadError as error:
            raised.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert "chelate-one 1.2 broke at stage 'import': KeyboardInterrupt" in str(raised)


def test_options_that_an_executor_does_not_take_are_told_with_its_version(install) -> None:
    install("chelate-one", "one = one_of_old", "one_of_old", EXECUTOR.format(name="one"))
    with pytest.raises(ConfigError, match=r"'one' \(chelate-one 1.2\).*'partition'"):
        Plugins().executor_with("one", {"partition": "long"})
    assert Plugins().executor_with("one", {})().name == "one"


def test_an_interrupt_in_a_hook_is_the_plugins() -> None:
    class Interrupts:
        @hookspecs.hookimpl
        def chelate_tasks_changed(self) -> None:
            raise KeyboardInterrupt

    plugins = Plugins(allow=[])
    plugins.register(Interrupts(), "interrupts")
    plugins.hooks.tasks_changed("d", [])
    assert "KeyboardInterrupt" in str(plugins.hooks.failures)


def test_a_hook_that_hangs_is_left_behind(monkeypatch, caplog) -> None:
    monkeypatch.setattr("chelate.kernel.plugins.hooks._PATIENCE", 0.2)
    gate, called = threading.Event(), []

    class Hangs:
        @hookspecs.hookimpl
        def chelate_tasks_changed(self, dispatch_id: str) -> None:
            called.append(dispatch_id)
            gate.wait()

    observer = Observer()
    plugins = Plugins(allow=[])
    plugins.register(Hangs(), "hangs")
    plugins.register(observer, "observer")
    try:
        for dispatch_id in ("a", "b"):
            plugins.hooks.tasks_changed(dispatch_id, [])
    finally:
        gate.set()
    assert called == ["a"], "once is enough"
    assert [name for name, _ in observer.seen] == ["a", "b"]
    assert "did not return within 0.2 s" in caplog.text


@pytest.mark.parametrize("hook", [name for name in hookspecs.__all__ if name != "hookimpl"])
def test_the_example_in_each_hooks_docstring_is_a_plugin(hook: str) -> None:
    text = textwrap.dedent(getattr(hookspecs, hook).__doc__.split("::\n", 1)[1])
    example = types.ModuleType(f"example_{hook}")
    exec(compile(text, hook, "exec"), example.__dict__)
    manager = pluggy.PluginManager("chelate")
    manager.add_hookspecs(hookspecs)
    manager.register(example)
    manager.check_pending()
    assert [caller.name for caller in manager.get_hookcallers(example)] == [hook]


def test_two_registries_share_nothing(install) -> None:
    one, two = Plugins(), Plugins()
    one.register_class(script_class("mine"))
    with pytest.raises(PluginNotFoundError):
        two.executor("mine")
