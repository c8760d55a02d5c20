"""Pictures of graphs."""

from __future__ import annotations

import random
import time
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from tests.show.kit import diamond, graph

from chelate.errors import ConfigError, CycleError
from chelate.graph import Graph, Kind, Node
from chelate.model import ValueRef
from chelate.show.drawing import draw
from chelate.show.layout import arrange

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def tooltips(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}title")]


def test_a_diamond_as_text() -> None:
    assert draw(diamond()).text.splitlines() == [
        "diamond · 4 tasks",
        "",
        "●   load (0)",
        "├─● left (1)   ← 0",
        "● │ right (2)  ← 0",
        "╰─● join (3)   ← 1, 2",
    ]


def test_a_diamond_as_a_picture() -> None:
    drawing = draw(diamond())
    root = ET.fromstring(drawing.svg)
    assert float(root.get("width", "0")) < 600
    assert {"load", "left", "right", "join", "0 · local"} <= set(texts(drawing.svg))
    assert any("wf.py:3" in text for text in tooltips(drawing.svg))


def test_parents_stand_before_children_and_boxes_do_not_overlap() -> None:
    random.seed(5)
    parents = [set(random.sample(range(i), min(i, 3))) for i in range(80)]
    plan = arrange(parents, 100.0, 20.0)
    for child, found in enumerate(parents):
        assert all(plan.layers[parent] < plan.layers[child] for parent in found)
    for layer in range(plan.depth):
        row = sorted(plan.places[i] for i in range(80) if plan.layers[i] == layer)
        assert all(b - a >= 120 - 1e-6 for a, b in pairwise(row))


def test_the_ordering_untangles_two_chains() -> None:
    plan = arrange([set(), set(), {1}, {0}], 10.0, 5.0)
    assert (plan.places[0] < plan.places[1]) == (plan.places[3] < plan.places[2])


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "\"&'",
        "]]>",
        "\x1b[31mred\x1b[0m",
        "null\x00byte",
        "half \ud800 pair",
        "two\nlines",
        "right\u202eleft",
        "ü" * 500,
        "漢字" * 100,
        "",
    ],
)
def test_hostile_names_stay_text(name: str) -> None:
    drawing = draw(graph(name, (name, []), (name, [0], Kind.TASK, name or "local")))
    root = ET.fromstring(drawing.svg.encode())
    assert not list(root.iter("script"))
    assert not list(root.iter(f"{SVG}script"))
    shown = drawing.text + drawing.svg
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "<script" not in drawing._repr_html_().replace("<svg", "")
    assert all(len(line) <= 80 for line in drawing.text.splitlines())


def test_a_long_name_is_cut_and_whole_in_the_tooltip() -> None:
    name = "a_task_with_a_name_that_goes_on_and_on_and_on"
    svg = draw(graph("wf", (name, []))).svg
    assert any(text.startswith("a_task") and text.endswith("…") for text in texts(svg))
    assert any(name in text for text in tooltips(svg))


def test_statuses_have_a_sign_and_a_legend() -> None:
    drawing = draw(diamond(), statuses={0: "COMPLETED", 1: "FAILED", 2: "RUNNING"})
    lines = drawing.text.splitlines()
    assert lines[2].startswith("✓")
    assert "✗ left" in lines[3]
    assert "▶" in lines[4]
    assert lines[-1] == "✗ failed  ▶ running  ○ waiting  ✓ done"
    assert {"failed", "running", "waiting", "done"} <= set(texts(drawing.svg))
    assert "skipped" not in texts(drawing.svg)


def test_a_status_of_a_later_version_is_drawn_as_uncertain() -> None:
    assert "? uncertain" in draw(diamond(), statuses={0: "TELEPORTED"}).text


def test_executors_and_sub_workflows_are_marked() -> None:
    drawn = draw(graph("wf", ("near", []), ("far", [0], Kind.SUBLATTICE, "slurm")))
    assert "far (1) · sub-workflow · slurm" in drawn.text
    assert "1 · sub-workflow · slurm" in texts(drawn.svg)


def test_parameters_are_drawn_on_request() -> None:
    made = Graph("wf", [Node(0, "double", args=[["p", 1]])])
    made.nodes.append(Node(1, "x", Kind.PARAMETER, value=ValueRef("0" * 64, 1)))
    assert "x (1)" not in draw(made).text
    shown = draw(made, parameters=True)
    assert "x (1) · parameter" in shown.text
    assert "x" in texts(shown.svg)
    assert shown.text.startswith("wf · 1 task\n")


def test_equal_siblings_become_one_box_that_shows_its_failure() -> None:
    made = graph("wf", ("load", []), *[("fit", [0])] * 300, ("best", list(range(1, 301))))
    drawing = draw(made, statuses=dict.fromkeys(range(250), "COMPLETED") | {7: "FAILED"})
    assert "fit × 300" in texts(drawing.svg)
    assert "248/300 done · 1 failed" in texts(drawing.svg)
    assert "✗ fit × 300 (1 … 300) · 248✓ 51○ 1✗" in drawing.text


def pairs(count: int) -> Graph:
    tasks: list[tuple[object, ...]] = []
    for i in range(count):
        tasks += [("prepare", []), ("process", [2 * i])]
    return graph("pairs", *tasks, ("collect", list(range(1, 2 * count, 2))))


def chain(count: int, names: str = "s") -> Graph:
    return graph("chain", *((names[i % len(names)], [i - 1] if i else []) for i in range(count)))


def tangle(count: int) -> Graph:
    rng = random.Random(3)
    return graph("tangle", *((f"t{i % 50}", rng.sample(range(i), min(i, 3))) for i in range(count)))


def different(count: int) -> Graph:
    return graph("different", *((f"task_{i}", []) for i in range(count)))


@pytest.mark.parametrize(
    "made",
    [pairs(5_000), chain(10_000), chain(10_000, "ab"), tangle(10_000), different(10_000)],
    ids=["pairs", "chain", "alternating", "tangle", "different"],
)
def test_ten_thousand_tasks_are_drawn_quickly_and_legibly(made: Graph) -> None:
    begin = time.process_time()
    drawing = draw(made, statuses=dict.fromkeys(range(9000), "COMPLETED"))
    root = ET.fromstring(drawing.svg)
    assert len(drawing.text.splitlines()) < 400
    assert time.process_time() - begin < 6
    assert len(list(root.iter(f"{SVG}g"))) < 400
    assert drawing.title.endswith(f"{len(made.nodes)} tasks")


def test_a_thousand_boxes_are_laid_out_quickly() -> None:
    rng = random.Random(3)
    parents = [set(rng.sample(range(i), min(i, 3))) for i in range(1_000)]
    begin = time.process_time()
    arrange(parents, 100.0, 20.0)
    assert time.process_time() - begin < 6


def test_an_empty_graph_and_a_circle() -> None:
    empty = draw(graph("nothing"))
    assert "nothing · 0 tasks" in empty.text
    ET.fromstring(empty.svg)
    with pytest.raises(CycleError, match="circle"):
        draw(graph("round", ("a", [1]), ("b", [0])))


def test_saving_and_showing(tmp_path) -> None:
    drawing = draw(diamond())
    assert str(drawing) == drawing.text
    assert drawing._repr_svg_() == drawing.svg
    assert drawing.save(tmp_path / "g.svg").read_text(encoding="utf-8") == drawing.svg
    assert drawing.save(tmp_path / "g.txt").read_text(encoding="utf-8") == f"{drawing}\n"
    with pytest.raises(ConfigError, match=r"\.svg or \.txt"):
        drawing.save(tmp_path / "g.png")
    as_text = draw(diamond(), format="text")
    assert as_text._repr_svg_() is None
    assert as_text._repr_html_().startswith("<pre")
    with pytest.raises(ConfigError, match="format"):
        draw(diamond(), format="png")
