"""Options become arguments of sbatch or a sentence; nothing is dropped, nothing gets through."""

from __future__ import annotations

import random
import shlex
import string
import subprocess
import sys

import pytest

from chelate.api import ConfigError, Executor, Resources
from chelate.remote import Prepared
from chelate_slurm import SlurmExecutor
from chelate_slurm.naming import array_name, job_name, keys_of_script, parse_name, script_of
from chelate_slurm.options import NAMED, SbatchOptions


def argv(wants: Resources | None = None, **named: object) -> list[str]:
    return SbatchOptions(named, {}).argv(wants or Resources())


@pytest.mark.parametrize(
    ("named", "argument"),
    [
        ({"partition": "long"}, "--partition=long"),
        ({"partition": ["long", "short"]}, "--partition=long,short"),
        ({"account": "chem-7"}, "--account=chem-7"),
        ({"qos": "high"}, "--qos=high"),
        ({"time": 90}, "--time=0-01:30:00"),
        ({"time": "90"}, "--time=0-01:30:00"),
        ({"time": "1:30"}, "--time=0-00:01:30"),
        ({"time": "12:00:00"}, "--time=0-12:00:00"),
        ({"time": "2-12"}, "--time=2-12:00:00"),
        ({"time": "2h"}, "--time=0-02:00:00"),
        ({"time": "UNLIMITED"}, "--time=UNLIMITED"),
        ({"nodes": 2}, "--nodes=2"),
        ({"nodes": "2-4"}, "--nodes=2-4"),
        ({"ntasks": 8}, "--ntasks=8"),
        ({"ntasks_per_node": 4}, "--ntasks-per-node=4"),
        ({"cpus_per_task": 3}, "--cpus-per-task=3"),
        ({"mem": "4G"}, "--mem=4G"),
        ({"mem": "4GiB"}, "--mem=4096M"),
        ({"mem": 512}, "--mem=512M"),
        ({"mem": "0"}, "--mem=0"),
        ({"mem_per_cpu": "2G"}, "--mem-per-cpu=2G"),
        ({"gres": "gpu:a100:2"}, "--gres=gpu:a100:2"),
        ({"gpus": 2}, "--gpus=2"),
        ({"constraint": "skylake&ib"}, "--constraint=skylake&ib"),
        ({"exclude": ["n1", "n2"]}, "--exclude=n1,n2"),
        ({"nodelist": "n[1-3]"}, "--nodelist=n[1-3]"),
        ({"exclusive": True}, "--exclusive"),
        ({"exclusive": "user"}, "--exclusive=user"),
        ({"reservation": "course"}, "--reservation=course"),
        ({"licenses": "matlab:1"}, "--licenses=matlab:1"),
        ({"nice": 100}, "--nice=100"),
    ],
)
def test_an_option_under_its_own_name(named, argument):
    assert argument in argv(**named)


@pytest.mark.parametrize(
    ("wants", "arguments"),
    [
        (Resources(cpus=4), ["--cpus-per-task=4"]),
        (Resources(mem="2G"), ["--mem=2048M"]),
        (Resources(gpus=2), ["--gpus=2"]),
        (Resources(gpus=1, gpu_type="a100"), ["--gpus=a100:1"]),
        (Resources(disk="10G"), ["--tmp=10240M"]),
        (Resources(time="90s"), ["--time=0-00:01:30"]),
        (Resources(nodes=3), ["--nodes=3"]),
        (Resources(exclusive=True), ["--exclusive"]),
    ],
)
def test_every_resource_of_a_task_reaches_slurm(wants, arguments):
    assert set(arguments) <= set(argv(wants))


def test_a_tasks_resources_go_before_the_executors():
    found = argv(Resources(cpus=8, mem="1G", gpus=1, time=60), cpus_per_task=2, mem_per_cpu="9G",
                 gpus_per_node=4, time="1-0", partition="p")  # fmt: skip
    assert "--cpus-per-task=8" in found
    assert "--mem=1024M" in found
    assert "--gpus=1" in found
    assert "--time=0-00:01:00" in found
    assert "--partition=p" in found
    assert not [one for one in found if one.startswith(("--mem-per", "--gpus-per"))]


def test_a_job_is_not_run_again_by_slurm_unless_wished():
    assert "--no-requeue" in argv()
    assert "--requeue" in SbatchOptions({}, {}, requeue=True).argv(Resources())


@pytest.mark.parametrize(
    ("limit", "lead", "wanted"),
    [("2h", None, "--signal=B:USR2@60"), ("5m", None, None),
     ("5m", 600, "--signal=B:USR2@150"), ("2h", 300, "--signal=B:USR2@300"),
     ("2h", 0, None), ("UNLIMITED", None, None)],
)  # fmt: skip
def test_a_task_is_warned_before_its_time_limit(limit, lead, wanted):
    found = SbatchOptions({"time": limit}, {}, signal_lead=lead).argv(Resources())
    assert [one for one in found if "signal" in one] == ([wanted] if wanted else [])


def test_other_options_pass():
    found = SbatchOptions({}, {"wckey": "x", "contiguous": True, "core_spec": 2}).argv(Resources())
    assert found[-3:] == ["--wckey=x", "--contiguous", "--core-spec=2"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mem": "4G", "mem_per_cpu": "1G"}, "mem and mem_per_cpu exclude each other"),
        ({"mem_per_cpu": "4G", "mem_per_gpu": "1G"}, "exclude each other"),
        ({"mem": "lots"}, "is not an amount of memory"),
        ({"time": "soon"}, "must be a time limit"),
        ({"time": 0}, "must be a time limit"),
        ({"nodes": 0}, "nodes=0 of the Slurm executor must be a whole number"),
        ({"cpus_per_task": "4"}, "whole number"),
        ({"partition": "a\nb"}, "a text of one line"),
        ({"account": "a\0b"}, "a text of one line"),
        ({"partition": ""}, "a text of one line"),
        ({"options": {"job-name": "x"}}, "names are made from the task's key"),
        ({"options": {"output": "x"}}, "is set by the executor"),
        ({"options": {"array": "0-3"}}, "equal tasks become an array by themselves"),
        ({"options": {"wrap": "rm"}}, "the task is what runs"),
        ({"options": {"wra": "rm"}}, "is short for 'wrap'"),
        ({"options": {"cluster": "x"}}, "is short for 'clusters'"),
        ({"options": {"part": "x"}}, "is short for 'partition'"),
        ({"root": 5}, "must be an absolute path"),
        ({"options": {"export": "ALL"}}, "env_vars="),
        ({"options": {"partition": "x"}}, "write partition='x'"),
        ({"options": {"mem-per-cpu": "x"}}, "write mem_per_cpu='x'"),
        ({"options": {"--wckey": "x"}}, "without dashes"),
        ({"options": {"wckey": "a\nb"}}, "a text of one line"),
        ({"options": {"wckey": 1.5}}, "must be a text"),
        ({"options": ["wckey"]}, "must be a dict"),
        ({"root": "/x/%j"}, "Slurm reads % and"),
        ({"root": "relative"}, "must be an absolute path"),
        ({"slurm_bin": "bin"}, "slurm_bin='bin' of the Slurm executor must be an absolute path"),
        ({"pack": 0}, "pack=0"),
        ({"max_jobs": 1.5}, "whole number"),
        ({"poll_min": -1}, "seconds, 0 or more"),
        ({"array_throttle": 0}, "array_throttle=0"),
        ({"signal_lead": -1}, "signal_lead=-1"),
        ({"requeue": "yes"}, "True or False"),
        ({"conda": "a", "venv": "/b"}, "conda and venv exclude each other"),
        ({"ssh": 5}, "must be a host"),
        ({"ssh": {"user": "me"}}, "must be a host, or a dict of options with 'host'"),
        ({"ssh": {"host": "h", "password": "x"}}, "'password' is no option; there are host"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_refused_when_it_is_written(given, words):
    with pytest.raises(ConfigError) as caught:
        SlurmExecutor(**given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="partitoin"):
        SlurmExecutor(partitoin="long")


def test_gpus_asked_for_twice_are_refused():
    options = SbatchOptions({"gres": "gpu:2"}, {})
    with pytest.raises(ConfigError, match="both ask for GPUs"):
        options.argv(Resources(gpus=1))
    with pytest.raises(ConfigError, match="needs gpus="):
        options.argv(Resources(gpu_type="a100"))


def test_without_the_ssh_plugin_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "chelate_ssh", None)
    with pytest.raises(ConfigError, match="pip install chelate-ssh"):
        SlurmExecutor(ssh="login.example.org")


def test_options_are_stored_as_they_were_written():
    options = {"partition": "long", "options": {"wckey": "x"}, "mem": "4G"}
    executor = SlurmExecutor(**options)
    assert executor.ref().to_json() == {"name": "slurm", "options": options}
    assert isinstance(SlurmExecutor(**executor.ref().options), Executor)


def test_all_named_options_are_arguments_of_the_executor():
    for name in NAMED:
        value = {"time": 5, "nice": 1}.get(name, 1)
        SlurmExecutor(**{name: value if name != "begin" else "now"})


# -- names and scripts -----------------------------------------------------------------------------


def prepared(index: int, root: str = "/root") -> Prepared:
    name = f"{index:040x}"
    folder = f"{root}/jobs/{name}"
    key = f"3f0c:{index}:1:ab"
    return Prepared(key, name, folder, ("/usr/bin/python3", "/r/agent.py", "supervise", folder))


def test_names_say_whose_job_it_is():
    name = job_name("store", "d:1:2:r")
    assert name == job_name("store", "d:1:2:r")
    assert name != job_name("other", "d:1:2:r")
    assert parse_name(name) == (name[3:19], "d:1:2:r")
    assert "," not in name
    keys = ["d:1:1:a", "d:2:1:b"]
    assert array_name("s", keys) != array_name("s", keys[::-1])
    assert parse_name("sbatch") is None


def test_the_keys_of_an_array_can_be_read_off_its_script():
    jobs = [prepared(index) for index in range(12)]
    text = script_of(jobs, "/root", "ct-x").decode()
    assert keys_of_script(text) == {str(index): job.key for index, job in enumerate(jobs)}


def test_what_would_be_submitted_can_be_seen():
    text = SlurmExecutor(partition="long", mem="4G").script(Resources(cpus=2), tasks=3)
    first, *lines = text.splitlines()
    words = shlex.split(first.partition(" <<")[0])
    assert words[:2] == ["sbatch", "--parsable"]
    assert {"--partition=long", "--mem=4G", "--cpus-per-task=2", "--array=0-2"} <= set(words)
    assert lines[0] == "#!/bin/bash"
    assert subprocess.run(["bash", "-n"], input=text.encode()).returncode == 0


# -- hostile texts ---------------------------------------------------------------------------------

NASTY = [
    "$(touch {0})", "`touch {0}`", "; touch {0};", "'; touch {0}; '", '"; touch {0}; "', "\\", "|&",
    "--wrap=touch {0}", "-x", "%j%%", "*", "~", "a b", "é✓", "\u202e", "${{IFS}}", "!!", "#SBATCH",
]  # fmt: skip


def hostile(number: int, path: str) -> str:
    chosen = random.Random(number)
    parts = [chosen.choice(NASTY).format(path) for _ in range(chosen.randint(1, 3))]
    parts.append("".join(chosen.choices(string.printable[:95], k=chosen.randint(0, 8))))
    chosen.shuffle(parts)
    return "".join(parts)


def check_hostile(count: int, tmp_path):
    """Values reach the program as they are, folders are one word, and nothing else happens."""
    trap = tmp_path / "trap"
    (tmp_path / "bin").mkdir()
    echo = tmp_path / "bin" / "sbatch"
    echo.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    echo.chmod(0o755)
    from chelate_slurm.controller import _CALL

    tried = refused = 0
    for start in range(0, count, 200):
        wanted: list[str] = []
        for number in range(start, min(count, start + 200)):
            text = hostile(number, str(trap))
            tried += 1
            try:
                options = SbatchOptions({"constraint": text}, {"wckey": text})
            except ConfigError:
                refused += 1
                continue
            wanted += options.argv(Resources())
        argv = ["sh", "-c", _CALL, "sh", "m", str(tmp_path / "bin"), "", "sbatch", *wanted]
        done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
        assert done.stdout.partition(b"m\n")[2].decode().split("\0")[:-1] == wanted
    assert tried == count
    assert refused < count / 10
    for number in range(0, count, max(1, count // 100)):
        root = f"/{hostile(number, str(trap))}"
        script = script_of([prepared(number, root)], root, "ct-x")
        shown = subprocess.run(
            ["bash", "-c", 'exec() { printf "%s\\0" "$@"; }; [() { :; }; eval "$(cat)"'],
            input=script, stdout=subprocess.PIPE,
        )  # fmt: skip
        words = shown.stdout.decode().split("\0")
        assert words[3] == f"{root}/jobs/{number:040x}", root
    assert not trap.exists()


def test_hostile_texts_change_nothing(tmp_path):
    check_hostile(400, tmp_path)


@pytest.mark.large
def test_ten_thousand_hostile_texts_change_nothing(tmp_path):
    check_hostile(10_000, tmp_path)
