"""The executor passes chelate's conformance kit, and its options are what they say."""

from __future__ import annotations

from typing import ClassVar

import pytest

from chelate.api import ConfigError
from chelate.testing import ExecutorConformance
from chelate_template import TemplateExecutor
from chelate_template.plugin import chelate_register_executors


def test_the_hook_gives_the_executor():
    assert chelate_register_executors() == [TemplateExecutor]


def test_options_are_json():
    executor = TemplateExecutor(["nice", "-n", "10"])
    assert executor.ref().to_json() == {
        "name": "template",
        "options": {"launcher": ["nice", "-n", "10"]},
    }
    with pytest.raises(ConfigError, match="not plain JSON"):
        TemplateExecutor([object()]).ref()


@pytest.mark.large
class TestConformance(ExecutorConformance):
    many = 20
    cannot: ClassVar = {
        "cancel_task": "it runs one task at a time",
        "outage": "nothing lies between it and its processes",
        "packing": "it runs one task at a time",
        "queue": "its tasks start at once",
    }

    @pytest.fixture
    def make_executor(self, tmp_path):
        return lambda: TemplateExecutor(["nice"], root=str(tmp_path / "root"))
