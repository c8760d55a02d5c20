"""Hosts and options that cannot do: one sentence, as early as possible, and no injection."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.remote.kit import Blobs, Host, Maker
from tests.remote.test_life import add, ledger, value

import chelate.remote
from chelate.api import ConfigError, Reason, Rejected
from chelate.remote import Environment, JobHost, LocalTransport, job_id, tools

SHIPPED = sorted((Path(chelate.remote.__file__).parent / "shipped").glob("*.py"))

PRETENDER = """\
#!{python}
import os, runpy, sys
sys.version_info = {version}
while sys.argv[1:] and sys.argv[1].startswith("-") and sys.argv[1] != "-c":
    del sys.argv[1]
if sys.argv[1] == "-c":
    code, sys.argv = sys.argv[2], ["-c", *sys.argv[3:]]
    exec(code)
else:
    del sys.argv[0]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def pretender(folder: Path, version: tuple) -> str:
    """An interpreter that says it is of another version."""
    path = folder / f"python{version[0]}.{version[1]}"
    path.write_text(PRETENDER.format(python=sys.executable, version=repr((*version, "final", 0))))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_is_shipped_is_read_by_old_pythons(path: Path):
    text = path.read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 6))
    assert "from __future__ import annotations" not in text  # 3.7
    assert not re.search(r"capture_output|text=True|ExitStack|:=", text)


@pytest.mark.parametrize("text", [tools._MAIN, tools._BEGIN], ids=["main", "begin"])
def test_the_first_lines_are_read_by_any_python(text: str):
    ast.parse(text, feature_version=(3, 4))
    assert not re.search(r"\bf['\"]|print\b|nonlocal|-> ", text)


def refused(host: Host, *, job=None) -> Rejected:
    (answer,) = asyncio.run(host.start(job or host.maker.job(add, 1, 2)))
    assert isinstance(answer, Rejected)
    assert "\n" not in answer.message.strip()
    return answer


def test_an_old_python_is_named(make_host, tmp_path):
    host = make_host(environment=Environment(python=pretender(tmp_path, (2, 7, 18))))
    answer = refused(host)
    assert answer.reason is Reason.ENV_MISMATCH
    assert "is Python 2.7.18" in answer.message
    assert "put" not in host.transport.verbs  # nothing was uploaded


def test_a_wrong_python_is_named_before_anything_is_sent(make_host, tmp_path):
    host = make_host(environment=Environment(python=pretender(tmp_path, (3, 9, 2))))
    answer = refused(host)
    assert answer.reason is Reason.ENV_MISMATCH
    assert "Python 3.9.2" in answer.message
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}" in answer.message
    assert "put" not in host.transport.verbs


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 9, 2)])
def test_a_wrong_python_behind_a_prerun_is_named_by_the_worker(make_host, tmp_path, version):
    path = pretender(tmp_path, version)
    host = make_host(environment=Environment(python=path, prerun="true"))
    job = host.maker.job(ledger, str(tmp_path / "ledger"))
    (outcome,) = asyncio.run(host.run(job))
    assert outcome.reason is Reason.ENV_MISMATCH
    assert f"Python {version[0]}.{version[1]}" in outcome.error
    assert not (tmp_path / "ledger").exists()


NO_PYTHONS = {
    "true": "/bin/true",
    "folder": "/",
    "rubbish": "#!/bin/sh\nyes rubbish | head -c 1000000\nexit 3\n",
    "parrot": '#!/bin/sh\nprintf "%s\\036[]\\n" "$*"\n',
}


@pytest.mark.parametrize("what", NO_PYTHONS)
def test_what_is_no_python_is_refused_at_once(make_host, tmp_path, what):
    path = NO_PYTHONS[what]
    if path.startswith("#!"):
        script = tmp_path / what
        script.write_text(path)
        script.chmod(0o755)
        path = str(script)
    host = make_host(environment=Environment(python=path))
    answer = refused(host)
    assert answer.reason is Reason.ENV_MISSING
    assert f"python={path}" in answer.message
    assert "no Python interpreter (exit status" in answer.message
    assert "put" not in host.transport.verbs


def test_what_is_no_python_behind_a_prerun_is_not_the_preruns_fault(make_host, tmp_path):
    async def outcome(python):
        host = make_host(python[-4:], environment=Environment(python=python, prerun=":"))
        return (await host.run(host.maker.job(ledger, str(tmp_path / "ledger"))))[0]

    async def main():
        return await asyncio.gather(*map(outcome, ("/bin/true", "/usr/bin/env")))

    for found in asyncio.run(main()):
        assert found.reason is Reason.ENV_MISSING
        assert "no Python interpreter" in found.error


def only(monkeypatch, *candidates: str) -> None:
    monkeypatch.setattr(Environment, "candidates", property(lambda self: candidates))


def test_a_host_without_python_is_named(make_host, tmp_path, monkeypatch):
    only(monkeypatch, "no-such-python", "no-other-python")
    answer = refused(make_host())
    assert answer.reason is Reason.ENV_MISSING
    assert "no interpreter (no-such-python, no-other-python)" in answer.message


def test_the_shim_of_a_version_manager_is_passed_over(make_host, tmp_path, monkeypatch):
    shims = tmp_path / "shims"
    shims.mkdir()
    own = shims / f"python3.{sys.version_info[1]}"
    own.write_text("#!/bin/sh\necho no such version >&2\nexit 127\n")
    own.chmod(0o755)
    real = shims / "python3"
    real.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    real.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shims}:/usr/bin:/bin")
    host = make_host(environment=Environment())
    (outcome,) = asyncio.run(host.run(host.maker.job(add, 1, 2)))
    assert value(outcome) == 3


def test_a_host_with_an_old_python_alone_is_named(make_host, tmp_path, monkeypatch):
    only(monkeypatch, pretender(tmp_path, (2, 7, 5)), pretender(tmp_path, (3, 5, 1)))
    answer = refused(make_host())
    assert answer.reason is Reason.ENV_MISSING
    assert "only Python 2.7, 3.5" in answer.message


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"python": "/nowhere/python3"}, "/nowhere/python3"),
        ({"venv": "/nowhere/venv"}, "no bin/python in the virtual environment /nowhere/venv"),
        ({"conda": "no-such-env"}, "no conda environment named no-such-env"),
        ({"conda": "/nowhere/env"}, "no bin/python in the conda environment /nowhere/env"),
        ({"modules": ["gcc/12.2.0"]}, "module"),
    ],
    ids=["python", "venv", "conda name", "conda prefix", "modules"],
)
def test_an_environment_that_is_not_there_is_named(make_host, options, says):
    answer = refused(make_host(environment=Environment(**options)))
    assert answer.reason is Reason.ENV_MISSING
    assert says in answer.message


def test_environments_are_entered(make_host, tmp_path):
    prefix = tmp_path / "my env"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").symlink_to(sys.executable)
    hooks = prefix / "etc" / "conda" / "activate.d"
    hooks.mkdir(parents=True)
    (hooks / "hook.sh").write_text("export HOOKED=yes\n")

    def look():
        return os.environ.get("CONDA_PREFIX"), os.environ.get("VIRTUAL_ENV"), os.getenv("HOOKED")

    conda = make_host(environment=Environment(conda=str(prefix)))
    venv = make_host(environment=Environment(venv=str(prefix)))
    (one,) = asyncio.run(conda.run(conda.maker.job(look)))
    (two,) = asyncio.run(venv.run(venv.maker.job(look)))
    assert value(one)[::2] == (str(prefix), "yes")
    assert value(two)[1] == str(prefix)


def test_noise_of_a_login_shell_is_skipped(host: Host):
    inner = host.transport.inner

    class Noisy(LocalTransport):
        async def run(self, argv, stdin=b"", *, timeout=None):
            command = ["sh", "-c", 'echo "Welcome!"; "$@"; s=$?; echo bye; exit $s', "x", *argv]
            return await inner.run(command, stdin, timeout=timeout)

    host.transport.inner = Noisy()
    host.transport.inner.stream = inner.stream
    (outcome,) = asyncio.run(host.run(host.maker.job(add, 1, 2)))
    assert value(outcome) == 3


def test_an_agent_that_was_removed_comes_back(make_host):
    host = make_host(cold=True)

    async def main():
        await host.run(host.maker.job(add, 1, 2))
        for path in (host.root / "tools").iterdir():
            path.rename(host.root / "gone")
        answers = await host.start(host.maker.job(add, 1, 2))
        return answers, await host.run(host.maker.job(add, 3, 4))

    answers, (outcome,) = asyncio.run(main())
    assert not isinstance(answers[0], Rejected)
    assert value(outcome) == 7


def test_a_root_that_others_can_write_is_refused(make_host, tmp_path):
    host = make_host(cold=True)
    host.root.mkdir()
    host.root.chmod(0o777)
    with pytest.raises(ConfigError, match="other users"):
        asyncio.run(host.start(host.maker.job(add, 1, 2)))
    fine = make_host("fine", cold=True)
    asyncio.run(fine.run(fine.maker.job(add, 1, 2)))
    assert fine.root.stat().st_mode & 0o777 == 0o700
    assert (fine.root / "secret").stat().st_mode & 0o777 == 0o600
    (fine.root / "secret").chmod(0o644)
    fine.jobs.forget()
    with pytest.raises(ConfigError, match="secret"):
        asyncio.run(fine.start(fine.maker.job(add, 1, 2)))


@pytest.mark.parametrize(
    "options",
    [
        {"python": "a", "conda": "b"},
        {"python": ""},
        {"python": "-c"},
        {"venv": "relative/venv"},
        {"modules": "gcc"},
        {"modules": ["gcc; rm -rf ~"]},
        {"modules": ["-h"]},
        {"env_vars": {"A B": "x"}},
        {"env_vars": {"A": 1}},
        {"env_vars": ["A=1"]},
        {"env_vars": {"A": "\0"}},
        {"prerun": 3},
        {"prerun": "a\0b"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_environments_are_checked_at_the_door(options):
    with pytest.raises(ConfigError):
        Environment.of(options)


@pytest.mark.parametrize("root", ["", "relative", "/", "/a/../b", "~other/x", "/a\nb"])
def test_roots_are_checked_at_the_door(root):
    with pytest.raises(ConfigError):
        JobHost(LocalTransport(), root=root)


PIECES = [
    "'", '"', "`", "$(", ")", "${", "}", ";", "&", "|", ">", "<", "\n", "\r", "\t", " ", "\\", "*",
    "?", "[", "]", "~", "#", "!", "%s", "--", "-rf", "..", "/", "ü", "日", "\x1b[0m", "\x7f", "EOF",
    "touch pwned", "$HOME", "a", "0",
]  # fmt: skip


def nasty(count: int):
    rng = random.Random(7)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, 9))) for _ in range(count)]


def check_environments(texts: list[str], folder: Path) -> None:
    """Each text as the value of a variable, an interpreter and a prefix: none is obeyed."""
    lines = []
    for text in texts:
        made = Environment(env_vars={"VALUE": text}, prerun=":")
        lines.append(made.script().decode().replace("exec ", "echo "))
        for option in ("python", "venv", "conda"):
            try:
                made = Environment(**{option: f"/nowhere/{text}"})
            except ConfigError:
                continue
            script = folder / "script"
            script.write_bytes(made.script())
            if option == "python":
                lines.append(made.script().decode())
    # One shell for many: each script in a subshell, which prints the variable it was given.
    whole = []
    for line in lines:
        body = line.replace("mode=$1\nshift\n", "printf '%s\\0' \"${VALUE-}\"; exit 0\n")
        whole.append(f"(\n{body})\n")
    script = folder / "whole.sh"
    script.write_text("".join(whole), encoding="utf-8")
    done = subprocess.run(["sh", str(script)], cwd=folder, capture_output=True, timeout=120)
    assert done.stderr == b""
    told = done.stdout.decode().split("\0")
    assert [item for item in told if item] == texts
    assert sorted(path.name for path in folder.iterdir()) == ["script", "whole.sh"]


def test_values_of_environments_are_never_obeyed(tmp_path):
    check_environments(nasty(100), tmp_path)


@pytest.mark.large
def test_ten_thousand_values_are_never_obeyed(tmp_path):
    check_environments(nasty(10_000), tmp_path)


def check_jobs(host: Host, folder: Path, count: int) -> None:
    """Nasty keys, names, stores, contexts and arguments of jobs, through all that is asked."""
    texts = nasty(count)
    maker = Maker(Blobs(folder))
    jobs = []
    for text in texts:
        job = maker.job(str.upper, text, store=text)
        task = job.tasks[0]
        job.key = task.key = f"{text}:1:1:x{len(jobs)}"
        task.name = task.call["name"] = text
        task.context = {"text": text}
        jobs.append(job)

    async def main():
        for at in range(0, count, 200):
            await host.jobs.prepare(jobs[at : at + 200])
        keys = [job.key for job in jobs]
        await host.jobs.look(keys)
        sights = await host.jobs.forbid(keys)
        await host.jobs.listing(texts[0])
        ran = jobs[0]
        ran.key = ran.tasks[0].key = ran.key + "again"
        return sights, await host.run(ran)

    sights, (outcome,) = asyncio.run(main())
    assert all(sight.forbidden for sight in sights.values())
    assert len(sights) == count
    assert value(outcome) == texts[0].upper()
    names = {path.name for path in host.root.iterdir()}
    assert names == {"cas", "code", "held", "jobs", "secret", "stores", "tools"}
    assert {path.name for path in (host.root / "jobs").iterdir()} >= set(map(job_id, sights))
    assert not list(folder.rglob("*pwned*"))


def test_names_and_keys_are_never_obeyed(make_host, tmp_path):
    check_jobs(make_host(cold=True), tmp_path, 40)


@pytest.mark.large
def test_ten_thousand_names_are_never_obeyed(make_host, tmp_path):
    check_jobs(make_host(cold=True), tmp_path, 10_000)


def test_the_agent_takes_no_path_from_a_request(host: Host):
    async def main():
        report = await host.jobs.probe()
        answers = []
        for verb, request in (
            ("look", {"jobs": ["../../etc"]}),
            ("release", {"jobs": ["/etc"], "cleanup": "always"}),
            ("list", {"store": "../jobs"}),
            ("missing", {"digests": ["../secret"]}),
            ("logs", {"job": "a" * 40, "stream": "../../secret", "offset": 0, "limit": 99}),
        ):
            data = json.dumps(request).encode()
            stdin = b"%d\n%b" % (len(data), data)
            done = await host.transport.run([*report.agent, verb], stdin)
            answers.append(b'"error": "SPEC"' in done.stdout)
        return answers

    assert asyncio.run(main()) == [True] * 5


def test_no_secret_is_in_command_lines_or_handles(host: Host):
    async def main():
        job = host.maker.job(add, 1, 2)
        await host.run(job)
        return job

    job = asyncio.run(main())
    secret = (host.root / "secret").read_bytes()
    commands = repr(host.transport.commands)
    for key in (secret, host.jobs.key_of(job_id(job.key))):
        assert key.hex() not in commands
    assert (host.folder(job) / "spec.json").stat().st_mode & 0o077 == 0
