from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chelate.client.fingerprint import compare_manifests, fingerprint_function, same

_SPEC = importlib.util.spec_from_file_location("edits", Path(__file__).with_name("edits.py"))
edits = importlib.util.module_from_spec(_SPEC)
sys.modules["edits"] = edits
_SPEC.loader.exec_module(edits)

# More interpreters to compare with, each with chelate's dependencies.
OTHERS = [path for path in os.environ.get("CHELATE_TEST_PYTHONS", "").split(os.pathsep) if path]


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    edits.write(folder, None)
    return fingerprint_function(edits.load(folder).job)


@pytest.mark.parametrize("edit", edits.EDITS, ids=lambda edit: edit.name)
def test_edit_counts_as_a_reader_expects(edit, before, tmp_path):
    edits.write(tmp_path, edit)
    after = fingerprint_function(edits.load(tmp_path).job)
    assert after.ast is not None
    found = compare_manifests(before.manifest, after.manifest)
    assert same(before, after) == (edit.code is None), found
    if edit.code is None:
        assert found is None or after.ast == before.ast
    else:
        assert found is not None
        assert found[0] == edit.code, found
        assert edit.sentence in found[1], found
        # Either digest by itself sees the edit, so it is seen without source too.
        assert after.ast != before.ast
        assert after.code != before.code


def _elsewhere(python: str, folder: Path, seed: int) -> dict:
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path.endswith("core"))
    script = str(Path(edits.__file__))
    done = subprocess.run(
        [python, script, str(folder)], env=environment, capture_output=True, check=True, timeout=240
    )
    return json.loads(done.stdout)


def test_other_processes_and_pythons_agree(tmp_path):
    here = _elsewhere(sys.executable, tmp_path, 0)
    again = _elsewhere(sys.executable, tmp_path, 3)
    assert here == again
    for python in OTHERS:
        there = _elsewhere(python, tmp_path, 1)
        assert {name: found[0] for name, found in there.items()} == {
            name: found[0] for name, found in here.items()
        }
        for edit in edits.EDITS:
            reason = compare_manifests(there[""][2], here[edit.name][2])
            assert (reason and reason[0]) == edit.code, (python, edit.name, reason)
