# ruff: noqa: E501 - texts of programs
# fmt: off
"""``ct.redispatch``: other inputs, other tasks, parents in every state; and chains of them."""

from __future__ import annotations

from tests.redispatch.kit import pair

SEED = '''
@ct.electron
def task_0(a):
    return a
@ct.electron
def task_1(a, b):
    return a + b
@ct.electron
def task_2(a, b):
    return a / b
@ct.electron
def redefined(a, b):
    return a * b
@ct.lattice
def wf(a, b):
    return task_2(task_1(task_0(a), b), b)
ARGS = (1, 2)
'''
WAIT = "ct.get_result({0}, wait=True, timeout=120)"


def again(call: str, args: str = "()", kwargs: str = "{}", before: str = "") -> str:
    return f"{before}\ndef again(parent):\n    return {call}, {args}, {kwargs}\n"


REUSE = "reuse_previous_results=True"
REPLACE = "replace_electrons={'task_2': redefined}"
KW = SEED.replace("ARGS = (1, 2)", "ARGS = (1,)\nKWARGS = {'b': 2}")
SUB = '''
@ct.electron
def step(x):
    return x + 1
@ct.electron
def other(x):
    return x * 10
@ct.electron
def start(x):
    return x
@ct.electron
@ct.lattice
def inner(x):
    return step(x)
@ct.electron
@ct.lattice
def untouched(x):
    return start(x)
@ct.lattice
def wf(n):
    return inner(start(n)) + untouched(n)
ARGS = (3,)
'''
FAILING = '''
from pathlib import Path
import os
@ct.electron
def good(x):
    return x
@ct.electron
def bad(x):
    if os.environ.get("PAIRS_PHASE") == "before":
        raise ValueError("planted")
    return x + 1
@ct.electron
def below(x):
    return x * 2
@ct.lattice
def wf(n=3):
    return below(bad(good(n)))
'''
CANCELLED = '''
import time
from pathlib import Path
import os
@ct.electron
def good(x):
    return x
@ct.electron
def slow(x):
    if os.environ.get("PAIRS_PHASE") == "before":
        time.sleep(600)
    return x + 1
@ct.electron
def below(x):
    return x * 2
@ct.lattice
def wf(n=3):
    return below(slow(good(n)))
UNFINISHED = True
'''
DAMAGE = '''
from chelate.embedding import current
import sqlite3, os
@ct.electron
def make(n):
    return bytes(n)
@ct.electron
def size(x):
    return len(x)
@ct.lattice
def wf(n={n}):
    return size(make(n))
def meanwhile(parent):
    gateway = current()
    digest = gateway.nodes(parent)[0].output.digest
    path = gateway.store.path(digest)
    if path is not None:
        {on_file}
    else:
        base = sqlite3.connect(gateway.settings.home / "chelate.db")
        {in_database}
        base.commit()
        base.close()
'''
GONE = DAMAGE.replace("{on_file}", "path.unlink()").replace("{in_database}", "base.execute('DELETE FROM blobs WHERE digest = ?', (digest,))")
WRONG = DAMAGE.replace("{on_file}", "os.chmod(path, 0o600); path.write_bytes(b'x' * path.stat().st_size)").replace("{in_database}", "base.execute('UPDATE blobs SET data = ? WHERE digest = ?', (b'x', digest))")

REDISPATCH = [
    pair("seed_replaced", SEED, SEED + "RESULT = 6\n" + again(f"ct.redispatch(parent, {REPLACE}, {REUSE})"),
         "task_0 SAME\n task_1 SAME\n task_2 REPLACED task_2 was replaced by redefined()"),
    pair("seed_new_input", SEED, SEED + "RESULT = 20\n" + again(f"ct.redispatch(parent, {REPLACE}, {REUSE})", "(1, 4)"),
         "task_0 SAME\n task_1 ARGUMENT argument b changed: 2 → 4\n task_2 REPLACED"),
    pair("seed_no_reuse", SEED, SEED + "RESULT = 1.5\n" + again("ct.redispatch(parent)"),
         "task_0 REUSE_OFF reuse was not asked for\n task_1 REUSE_OFF\n task_2 REUSE_OFF"),
    pair("all_reused", SEED, SEED + "RESULT = 1.5\n" + again(f"ct.redispatch(parent, {REUSE})"), "task_0 SAME\n task_1 SAME\n task_2 SAME"),
    pair("same_inputs_given", SEED, SEED + "RESULT = 1.5\n" + again(f"ct.redispatch(parent, {REUSE})", "(1, 2)"), "task_0 SAME\n task_1 SAME\n task_2 SAME"),
    pair("keyword_inputs_kept", KW, KW + "RESULT = 6\n" + again(f"ct.redispatch(parent, {REPLACE}, {REUSE})"), "task_0 SAME\n task_1 SAME\n task_2 REPLACED"),
    pair("keyword_inputs_new", KW, KW + "RESULT = 1.25\n" + again(f"ct.redispatch(parent, {REUSE})", "()", "{'a': 1, 'b': 4}"), "task_0 SAME\n task_1 ARGUMENT\n task_2 UPSTREAM"),
    pair("equal_replacement", SEED, SEED + "@ct.electron\ndef equal(a, b):\n    return a / b\nRESULT = 1.5\n" + again(f"ct.redispatch(parent, {{'task_2': equal}}, {REUSE})"),
         "task_0 SAME\n task_1 SAME\n task_2 SAME"),
    pair("plain_function_replacement", SEED, SEED + "def plain(a, b):\n    return a - b\nRESULT = 1\n" + again(f"ct.redispatch(parent, {{'task_2': plain}}, {REUSE})"),
         "task_0 SAME\n task_1 SAME\n task_2 REPLACED task_2 was replaced by plain()"),
    pair("lambda_replacement", SEED, SEED + "RESULT = 1\n" + again(f"ct.redispatch(parent, {{'task_2': lambda a, b: a - b}}, {REUSE})"),
         "task_0 SAME\n task_1 SAME\n task_2 REPLACED"),
    pair("replaced_upstream", SEED, SEED + "@ct.electron\ndef zero(a):\n    return a + 1\nRESULT = 2.0\n" + again(f"ct.redispatch(parent, {{'task_0': zero}}, {REUSE})"),
         "task_0 REPLACED\n task_1 UPSTREAM result of task_0()\n task_2 UPSTREAM"),
    pair("replaced_equal_output", SEED, SEED + "@ct.electron\ndef zero(a):\n    return a * 1\nRESULT = 1.5\n" + again(f"ct.redispatch(parent, {{'task_0': zero}}, {REUSE})"),
         "task_0 REPLACED\n task_1 SAME_VALUE although task_0() ran again\n task_2 SAME"),
    pair("sticky", SEED + "\ndef meanwhile(parent):\n    child = ct.redispatch(parent, " + REPLACE + ")()\n    " + WAIT.format("child") + "\n    return child\n",
         SEED + "RESULT = 20\n" + again(f"ct.redispatch(parent, {REUSE})", "(1, 4)"), "task_0 SAME\n task_1 ARGUMENT\n task_2 UPSTREAM"),
    pair("sticky_no_input", SEED + "\ndef meanwhile(parent):\n    child = ct.redispatch(parent, " + REPLACE + ")(1, 4)\n    " + WAIT.format("child") + "\n    return child\n",
         SEED + "RESULT = 20\n" + again(f"ct.redispatch(parent, {REUSE})"), "task_0 SAME\n task_1 SAME\n task_2 SAME"),
    pair("replaced_back", SEED + "\ndef meanwhile(parent):\n    child = ct.redispatch(parent, " + REPLACE + ")()\n    " + WAIT.format("child") + "\n    return child\n",
         SEED + "RESULT = 1.5\n" + again(f"ct.redispatch(parent, {{'task_2': task_2}}, {REUSE})"), "task_0 SAME\n task_1 SAME\n task_2 REPLACED"),
    pair("two_replacements", SEED + "\ndef meanwhile(parent):\n    child = ct.redispatch(parent, " + REPLACE + ")()\n    " + WAIT.format("child") + "\n    return child\n",
         SEED + "@ct.electron\ndef ten(a):\n    return a * 10\nRESULT = 12 * 2\n" + again(f"ct.redispatch(parent, {{'task_0': ten}}, {REUSE})"), "task_0 REPLACED\n task_1 UPSTREAM\n task_2 UPSTREAM"),
    pair("sticky_then_edited_source", SEED + "\ndef meanwhile(parent):\n    child = ct.redispatch(parent, " + REPLACE + ")()\n    " + WAIT.format("child") + "\n    return child\n",
         SEED + "RESULT = 1.5\n" + again("ct.dispatch(wf, reuse_from=parent)", "(1, 2)"), "task_0 SAME\n task_1 SAME\n task_2 BODY"),
    pair("chain_of_five", SEED + "\ndef meanwhile(parent):\n    for b in (3, 4, 5):\n        parent = ct.redispatch(parent, reuse_previous_results=True)(1, b)\n        " + WAIT.format("parent") + "\n    return parent\n",
         SEED + "RESULT = 7 / 6\n" + again(f"ct.redispatch(parent, {REUSE})", "(1, 6)"), "task_0 SAME\n task_1 ARGUMENT argument b changed: 5 → 6\n task_2 UPSTREAM"),
    pair("executor_of_replacement", SEED, SEED + "equal = ct.electron(task_2, executor=ct.LocalExecutor(workers=1))\nRESULT = 1.5\n" + again(f"ct.redispatch(parent, {{'task_2': equal}}, {REUSE})"),
         "task_0 SAME\n task_1 SAME\n task_2 SAME"),
    pair("replaced_in_sub", SUB, SUB + "RESULT = 33\n" + again(f"ct.redispatch(parent, {{'step': other}}, {REUSE})"),
         "start SAME\n inner REPLACED step is replaced, and is called inside\n inner.step REPLACED step was replaced by other()\n untouched SAME"),
    pair("replaced_sub", SUB, SUB + "RESULT = 33\n" + again(f"ct.redispatch(parent, {{'inner': other}}, {REUSE})"),
         "start SAME\n inner REPLACED inner was replaced by other()\n untouched SAME"),
    pair("sub_new_input", SUB, SUB + "RESULT = 9\n" + again(f"ct.redispatch(parent, {REUSE})", "(4,)"),
         "start ARGUMENT\n inner UPSTREAM\n inner.step ARGUMENT\n untouched ARGUMENT\n untouched.start ARGUMENT"),
    pair("sticky_in_sub", SUB + "\ndef meanwhile(parent):\n    child = ct.redispatch(parent, {'step': other})()\n    " + WAIT.format("child") + "\n    return child\n",
         SUB + "RESULT = 44\n" + again(f"ct.redispatch(parent, {REUSE})", "(4,)"),
         "start ARGUMENT\n inner UPSTREAM\n inner.step ARGUMENT\n untouched ARGUMENT\n untouched.start ARGUMENT"),
    pair("sub_linked", SUB, SUB + "RESULT = 7\n" + again(f"ct.redispatch(parent, {REUSE})"), "start SAME\n inner SAME\n untouched SAME"),
    pair("failed_parent", FAILING, FAILING + "RESULT = 8\n", "good SAME\n bad PARENT_FAILED it had failed\n below PARENT_FAILED it had been skipped"),
    pair("failed_again", FAILING.replace('os.environ.get("PAIRS_PHASE") == "before"', "True"), FAILING.replace('os.environ.get("PAIRS_PHASE") == "before"', "True"),
         "good SAME\n bad PARENT_FAILED\n below NOT_REACHED bad", status="FAILED"),
    pair("failed_then_fixed", FAILING.replace('os.environ.get("PAIRS_PHASE") == "before"', "True"), FAILING.replace('os.environ.get("PAIRS_PHASE") == "before"', "False"),
         "good SAME\n bad PARENT_FAILED\n below PARENT_FAILED"),
    pair("failed_replaced", FAILING.replace('os.environ.get("PAIRS_PHASE") == "before"', "True"), FAILING.replace('os.environ.get("PAIRS_PHASE") == "before"', "True") + "RESULT = 0\n" + again(f"ct.redispatch(parent, {{'bad': lambda x: 0}}, {REUSE})"),
         "good SAME\n bad PARENT_FAILED\n below PARENT_FAILED"),
    pair("cancelled_parent", CANCELLED + "\ndef meanwhile(parent):\n    ct.cancel(parent, ['slow'], wait=True)\n    ct.get_result(parent, wait=True)\n",
         CANCELLED, "good SAME\n slow PARENT_CANCELLED it had been cancelled\n below PARENT_CANCELLED"),
    pair("held_parent", SEED.replace("@ct.lattice", "@ct.lattice") + "UNFINISHED = True\ndef meanwhile(parent):\n    return ct.dispatch(wf, disable_run=True)(1, 2)\n",
         SEED + "RESULT = 1.5\n" + again(f"ct.redispatch(parent, {REUSE})"), "task_0 PARENT_UNFINISHED it had not completed\n task_1 PARENT_UNFINISHED\n task_2 PARENT_UNFINISHED"),
    pair("output_gone_small", GONE.replace("{n}", "10"), GONE.replace("{n}", "10"), "make RESULT_MISSING its stored result is gone\n size SAME_VALUE"),
    pair("output_gone_large", GONE.replace("{n}", "300_001"), GONE.replace("{n}", "300_001"), "make RESULT_MISSING\n size SAME_VALUE"),
    pair("output_damaged_small", WRONG.replace("{n}", "11"), WRONG.replace("{n}", "11"), "make RESULT_DAMAGED its stored result is damaged\n size SAME_VALUE"),
    pair("output_damaged_large", WRONG.replace("{n}", "300_003"), WRONG.replace("{n}", "300_003"), "make RESULT_DAMAGED\n size SAME_VALUE"),
    pair("unknown_replacement", SEED, SEED + again(f"ct.redispatch(parent, {{'task_9': redefined}}, {REUSE})"), "", fails_with="has no task of that name. Its tasks: task_0, task_1, task_2."),
    pair("unbound_replacement", SEED, SEED + again(f"ct.redispatch(parent, {{'task_2': lambda a: a}}, {REUSE})"), "", fails_with="A call of 'task_2', which is to be replaced, does not fit"),
    pair("replacement_of_any_arguments", SEED, SEED + "RESULT = 2\n" + again(f"ct.redispatch(parent, {{'task_2': lambda *xs: len(xs)}}, {REUSE})"), "task_0 SAME\n task_1 SAME\n task_2 REPLACED"),
    pair("unknown_id", SEED, SEED + again("ct.redispatch('00000000-0000-4000-8000-000000000000')"), "", fails_with="DispatchNotFoundError"),
    pair("no_id", SEED, SEED + again("ct.redispatch('nonsense')"), "", fails_with="InvalidDispatchIdError"),
    pair("inputs_that_do_not_fit", SEED, SEED + again("ct.redispatch(parent)", "(1, 2, 3)"), "", fails_with="too many positional arguments"),
]
