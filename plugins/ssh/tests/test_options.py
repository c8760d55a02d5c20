"""Options that cannot be meant are refused where they are written, with a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from chelate.api import ConfigError
from chelate_ssh import SSHExecutor, Target


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"password": "hunter2"}, "key"),
        ({"passphrase": "hunter2"}, "passphrase_env="),
        ({"passphrase_env": "not a name"}, "name of an environment variable"),
        ({"port": 0}, "from 1 to 65535"),
        ({"port": "22"}, "from 1 to 65535"),
        ({"host": "-oProxyCommand=evil"}, "not the name of a host"),
        ({"host": "a b"}, "not the name of a host"),
        ({"host": "a\nb"}, "control characters"),
        ({"host": ""}, "control characters"),
        ({"host": 7}, "control characters"),
        ({"user": "-l"}, "not the name of a user"),
        ({"connect_timeout": 0}, "above 0"),
        ({"connect_timeout": True}, "above 0"),
        ({"max_channels": 0}, "at least 1"),
        ({"proxy_jump": "a b"}, "proxy_jump"),
        ({"slots": 0}, "at least 1"),
        ({"gpus": -1}, "at least 0"),
        ({"mem": "lots"}, "memory"),
        ({"root": "relative"}, "absolute path"),
        ({"root": "/a/../b"}, "absolute path"),
        ({"root": 3}, "absolute path"),
        ({"cleanup": "sometimes"}, "on_success"),
        ({"grace": 0}, "above 0"),
        ({"keep": "a week"}, "above 0"),
        ({"poll_interval": -1}, "above 0"),
        ({"python": "/p", "venv": "/v"}, "exclude each other"),
        ({"env_vars": {"A B": "c"}}, "not the name of a variable"),
        ({"env_vars": ["A=b"]}, "mapping"),
        ({"modules": "gcc"}, "list"),
        ({"modules": ["gcc; rm"]}, "not the name of a module"),
        ({"prerun": 3}, "shell commands"),
    ],
)
def test_a_wrong_option_is_refused_at_once(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        SSHExecutor(**{"host": "node", **options})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        ("node1", "must be a list"),
        ([{"host": "a", "root": "/x"}], "cannot be set for one host"),
        ([{"slots": 2}], "host=None"),
        ([3], "host=3"),
    ],
)
def test_wrong_hosts_are_refused_at_once(hosts: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SSHExecutor(hosts=hosts)


def test_one_or_several_hosts_but_not_both() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        SSHExecutor("a", hosts=["b"])


def test_a_host_may_carry_login_and_port() -> None:
    made = SSHExecutor(hosts=["ada@one:2200", {"host": "two", "slots": 3}, "::1"], user="bob")
    targets = [place.host.transport.target for place in made.hosts()]
    assert [(item.host, item.user, item.port) for item in targets] == [
        ("one", "ada", 2200),
        ("two", "bob", None),
        ("::1", "bob", None),
    ]
    assert [place.slots for place in made.hosts()] == [None, 3, None]


def test_options_are_plain_json_and_make_an_equal_executor() -> None:
    made = SSHExecutor(hosts=["one", {"host": "two", "mem": "4G"}], modules=["gcc"], prerun=["a"])
    again = SSHExecutor(**made.ref().options)
    assert again.ref() == made.ref()


def test_without_a_host_it_says_where_to_write_one() -> None:
    with pytest.raises(ConfigError, match=r"executors\.ssh.*CHELATE_EXECUTORS"):
        SSHExecutor(slots=2).hosts()


def test_equal_ways_are_equal_targets() -> None:
    assert Target("a", user="b") == Target("a", user="b")
    assert len({Target("a"), Target("a"), Target("a", port=22)}) == 2
