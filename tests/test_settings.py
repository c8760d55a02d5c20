"""Settings: where they come from, which source wins, and what a wrong one says."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from chelate.errors import ConfigError
from chelate.settings import Settings, default_home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def load(home: Path, text: str | None = None, overrides=None, **variables: str) -> Settings:
    if text is not None:
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(text)
    return Settings.load({"CHELATE_HOME": str(home), **variables}, overrides)


def test_nothing_set_gives_the_defaults(home: Path) -> None:
    settings = load(home)
    assert settings == Settings(home=home)
    assert settings.default_executor == "local"
    assert settings.store_url == f"sqlite:///{home}/chelate.db"
    assert not home.exists(), "loading settings must not write anything"


def test_each_source_wins_over_the_one_before(home: Path) -> None:
    text = "max_depth = 5\npoll_interval = 9\nprogress = 'off'\n"
    settings = load(
        home, text, {"progress": "on"}, CHELATE_POLL_INTERVAL="2.5", CHELATE_PROGRESS="auto"
    )
    assert (settings.max_depth, settings.poll_interval, settings.progress) == (5, 2.5, "on")


def test_every_setting_can_come_from_the_environment(home: Path) -> None:
    settings = load(
        home,
        CHELATE_STORE="postgresql://db/x",
        CHELATE_SYNCHRONOUS="FULL",
        CHELATE_DEFAULT_EXECUTOR="slurm",
        CHELATE_MAX_DEPTH="3",
        CHELATE_EXIT_WAIT="no",
        CHELATE_INFRASTRUCTURE_RETRIES="0",
        CHELATE_POLL_INTERVAL="1",
        CHELATE_DISABLE_PLUGINS="a, b",
        CHELATE_ALLOW_PLUGINS="c",
        CHELATE_LOG_LEVEL="debug",
        CHELATE_PROGRESS="off",
        CHELATE_EXECUTORS='{"slurm": {"partition": "long"}}',
    )
    assert settings == Settings(
        home=home,
        store="postgresql://db/x",
        synchronous="full",
        default_executor="slurm",
        max_depth=3,
        exit_wait=False,
        infrastructure_retries=0,
        poll_interval=1.0,
        disable_plugins=("a", "b"),
        allow_plugins=("c",),
        log_level="DEBUG",
        progress="off",
        executors={"slurm": {"partition": "long"}},
    )
    assert {item.name for item in dataclasses.fields(Settings)} == set(settings.to_dict())
    json.dumps(settings.to_dict())


def test_executor_options_add_up(home: Path) -> None:
    settings = load(
        home,
        "[executors.slurm]\npartition = 'short'\naccount = 'x'\n[executors.ssh]\nhost = 'h'\n",
        CHELATE_EXECUTORS='{"slurm": {"partition": "long"}}',
    )
    assert settings.executors == {
        "slurm": {"partition": "long", "account": "x"},
        "ssh": {"host": "h"},
    }
    assert settings.get("executors.slurm.partition") == "long"


def test_an_empty_variable_is_not_set(home: Path) -> None:
    assert load(home, CHELATE_STORE="").store is None


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("CHELATE_MAX_DEPTH", "0", "at least 1"),
        ("CHELATE_MAX_DEPTH", "deep", "whole number"),
        ("CHELATE_INFRASTRUCTURE_RETRIES", "-1", "at least 0"),
        ("CHELATE_POLL_INTERVAL", "0", "above 0"),
        ("CHELATE_POLL_INTERVAL", "nan", "above 0"),
        ("CHELATE_EXIT_WAIT", "perhaps", "true or false"),
        ("CHELATE_STORE", "somewhere", "a URL"),
        ("CHELATE_PROGRESS", "bar", "'auto', 'on' or 'off'"),
        ("CHELATE_LOG_LEVEL", "loud", "one of DEBUG"),
        ("CHELATE_EXECUTORS", "{", "plain JSON"),
        ("CHELATE_EXECUTORS", '{"slurm": 3}', "plain JSON"),
    ],
)
def test_a_wrong_variable_names_itself_and_what_is_allowed(home, variable, value, allowed) -> None:
    with pytest.raises(ConfigError) as caught:
        load(home, **{variable: value})
    assert variable in str(caught.value)
    assert repr(value) in str(caught.value)
    assert allowed in str(caught.value)


def test_a_misspelt_variable_is_an_error_and_a_stranger_is_not(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"CHELATE_MAX_DEPHT.*CHELATE_MAX_DEPTH"):
        load(home, CHELATE_MAX_DEPHT="3")
    load(home, CHELATE_SSH_KEY="x", CHELATE_SERVER="http://h", CHELATE_REQUIRE_SERVICES="1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_dept = 3", "did you mean 'max_depth'"),
        ("zzz = 3", "there are home, store"),
        ("max_depth = '3'", "key 'max_depth'"),
        ("max_depth = true", "whole number"),
        ("disable_plugins = 'a'", "a list of names"),
        ("[executors.slurm]\nsince = 2020-01-01", "plain JSON"),
        ("home = '/elsewhere'", "CHELATE_HOME"),
        ("max_depth =", "cannot be read"),
    ],
)
def test_a_wrong_file_names_itself(home: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(home, text)
    assert str(home / "config.toml") in str(caught.value)
    assert words in str(caught.value)


def test_a_named_file_may_set_the_home_relative_to_itself(tmp_path: Path) -> None:
    file = tmp_path / "project" / "chelate.toml"
    file.parent.mkdir()
    file.write_text("home = 'data'\n")
    settings = Settings.load({"CHELATE_CONFIG": str(file), "HOME": str(tmp_path)})
    assert settings.home == tmp_path / "project" / "data"


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Settings.load({"CHELATE_CONFIG": str(tmp_path / "no.toml"), "HOME": str(tmp_path)})


def test_a_file_that_is_no_text_is_a_config_error(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(home)


def test_code_is_checked_too(home: Path) -> None:
    with pytest.raises(ConfigError, match="max_depth"):
        Settings(home=home, max_depth=0)
    with pytest.raises(ConfigError, match=r"configure\(max_depth=…\)"):
        load(home, None, {"max_depth": 0})
    with pytest.raises(ConfigError, match="did you mean 'progress'"):
        load(home, None, {"progres": "on"})
    settings = load(home)
    assert settings.with_overrides(max_depth=7).max_depth == 7
    assert settings.max_depth == 20
    with pytest.raises(ConfigError):
        settings.with_overrides(nothing=1)
    with pytest.raises(ConfigError, match="no setting"):
        settings.get("executors.slurm")


def test_a_relative_home_and_a_tilde_become_absolute(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Settings(home="here").home == tmp_path / "here"
    assert Settings(home="~/there").home == tmp_path / "there"


@pytest.mark.parametrize(
    ("platform", "environ", "expected"),
    [
        ("linux", {"HOME": "/u"}, "/u/.local/share/chelate"),
        ("linux", {"HOME": "/u", "XDG_DATA_HOME": "/x"}, "/x/chelate"),
        ("linux", {"HOME": "/u", "XDG_DATA_HOME": "relative"}, "/u/.local/share/chelate"),
        ("darwin", {"HOME": "/u"}, "/u/Library/Application Support/chelate"),
    ],
)
def test_the_default_home_is_the_platforms(monkeypatch, platform, environ, expected) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert default_home(environ) == Path(expected)
