"""Results as text, HTML and JSON."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from tests.show.kit import FakeResult, diamond, graph

from chelate.errors import BlobMissingError
from chelate.model import NodeRecord, NodeStatus, Status
from chelate.show.summary import duration_text, result_as_html, result_as_json, result_as_text

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: <b>no</b>\n'


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("I have no face")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.add(tag)

    def handle_data(self, data) -> None:
        self.text += data


def read(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    return tags


def done(node_id: int, **more) -> NodeRecord:
    return NodeRecord(
        node_id, NodeStatus.COMPLETED, 1, executor="local", started_at=10.0, ended_at=10.5, **more
    )


def failed(node_id: int) -> NodeRecord:
    return NodeRecord(node_id, NodeStatus.FAILED, 2, reason="USER_ERROR", error=TRACEBACK)


def test_a_small_result() -> None:
    rows = {0: done(0), 1: failed(1), 2: done(2), 3: NodeRecord(3, NodeStatus.SKIPPED)}
    result = FakeResult(
        diamond(), rows, status=Status.FAILED, error="Task left failed\n" + TRACEBACK
    )
    text = result_as_text(result)
    assert "0f0f0f0f-0000-4000-8000-000000000000" in text
    assert "✗ FAILED" in text
    assert "(after 2.50 s)" in text
    assert "\x1b" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("1 ")]
    assert line.split()[:3] == ["1", "left", "FAILED"]
    assert "attempt 2: USER_ERROR: ValueError: <b>no</b>" in line
    assert "0.50 s" in text
    assert "\x1b[31mFAILED" in result_as_text(result, colour=True)


def test_what_to_do_is_not_cut_off() -> None:
    sentence = "Host far refuses the login. " + "It offered nothing of use. " * 5 + "Call ssh-add."
    rows = {
        i: NodeRecord(i, NodeStatus.FAILED, 1, reason="AUTH", error=sentence) for i in range(1, 3)
    }
    text = result_as_text(FakeResult(diamond(), rows, status=Status.FAILED))
    assert text.count("Call ssh-add.") == 1, "the same sentence, once"
    assert text.endswith(f"left (1): AUTH: {sentence}")


def test_html_holds_everything_as_text() -> None:
    made = graph("<i>wf</i>", ("<script>alert(1)</script>", []))
    result = FakeResult(made, {0: failed(0)}, result="<img src=x>", name="<i>wf</i>")
    tags = read(result_as_html(result))
    assert tags.seen <= {"div", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert "<script>alert(1)</script>" in tags.text
    assert "<img src=x>" in tags.text


def test_values_that_cannot_be_looked_at() -> None:
    result = FakeResult(diamond(), {}, result=Mute())
    for text in (result_as_text(result), result_as_html(result), result_as_json(result)):
        assert "Mute whose repr raised RuntimeError" in text

    class Unloadable(FakeResult):
        @property
        def result(self):
            raise ModuleNotFoundError("No module named 'theirs'")

        @result.setter
        def result(self, value) -> None:
            pass

    assert "cannot be loaded here: ModuleNotFoundError" in result_as_text(Unloadable(diamond()))


def test_a_lost_graph_leaves_the_head_readable() -> None:
    class Lost(FakeResult):
        @property
        def graph(self):
            raise BlobMissingError("The graph is gone.")

        @graph.setter
        def graph(self, value) -> None:
            pass

    assert "Its tasks cannot be read: The graph is gone." in result_as_text(Lost(diamond()))
    assert json.loads(result_as_json(Lost(diamond())))["trouble"]


def test_a_long_repr_is_cut() -> None:
    text = result_as_text(FakeResult(diamond(), {}, result="x" * 10_000))
    assert max(map(len, text.splitlines())) < 230


def test_many_tasks_are_counted_with_failures_first() -> None:
    made = graph("wf", *[("fit", [])] * 300, ("best", list(range(300))))
    rows = {i: done(i) for i in range(300)} | {i: failed(i) for i in range(30)}
    text = result_as_text(FakeResult(made, rows, status=Status.FAILED))
    assert text.index("ValueError") < text.index("COUNT")
    assert "… and 10 more" in text
    assert "fit   COMPLETED  270" in text
    assert "best  WAITING    1" in text
    assert len(text.splitlines()) < 50
    assert "270" in read(result_as_html(FakeResult(made, rows))).text


def test_json_is_json() -> None:
    rows = {0: done(0, reused_from=("abc", 1)), 1: failed(1)}
    document = json.loads(result_as_json(FakeResult(diamond(), rows, result={1, 2})))
    assert document["status"] == "COMPLETED"
    assert document["result"] == "{1, 2}"
    assert document["start_time"] == "2026-01-02T03:04:05+00:00"
    assert [task["name"] for task in document["tasks"]] == ["load", "left", "right", "join"]
    assert document["tasks"][0]["reused_from"] == ["abc", 1]
    assert document["tasks"][1]["error"] == TRACEBACK


def test_a_running_dispatch_shows_no_result() -> None:
    text = result_as_text(FakeResult(diamond(), {}, status=Status.RUNNING, end_time=None))
    assert "Result" not in text
    assert "Ended" not in text


def test_durations() -> None:
    spans = [None, 0.0, 9.996, 59.94, 61, 3_661]
    assert [duration_text(span) for span in spans] == [
        "", "0.00 s", "10.00 s", "59.9 s", "1:01 min", "1:01:01 h",
    ]  # fmt: skip
