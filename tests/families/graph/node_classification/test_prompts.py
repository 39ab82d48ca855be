"""Prompts: what they say about a hand-made graph."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from kdbench.errors import DataError
from kdbench.families.graph.node_classification.prompts import (
    RESPONSE_MARKER,
    TextGraph,
    hop_neighbourhoods,
    prompt,
    response,
)

#  0 - 1    5 (alone)
#  |   |
#  2 - 3 - 4
TITLES = ["ash", "birch", "cedar", "elder", "hazel", "gorse"]
GRAPH = TextGraph(
    texts=[f"{title} begins a text about number {i}" for i, title in enumerate(TITLES)],
    neighbours=[[2, 1], [0, 3], [0, 3], [1, 2, 4], [3], []],
    class_names=["Even", "Odd"],
)


def star(leaves: int) -> TextGraph:
    return TextGraph(
        [f"leaf{i}" for i in range(leaves + 1)], [list(range(1, leaves + 1)), *[[0]] * leaves], GRAPH.class_names
    )


def test_rings_follow_distance_and_the_order_of_the_lists() -> None:
    assert hop_neighbourhoods(GRAPH, 0, 4) == [[0], [2, 1], [3], [4], []]
    assert hop_neighbourhoods(GRAPH, 5, 2) == [[5], [], []]


def test_rings_ignore_self_loops_and_repeated_links() -> None:
    graph = TextGraph(["a", "b"], [[0, 1, 1], [0, 0, 1]], ["x"])
    assert hop_neighbourhoods(graph, 0, 2) == [[0], [1], []]


def test_hop_zero_speaks_of_the_node_alone() -> None:
    text = prompt(GRAPH, 0, 0)
    assert text is not None
    assert text.startswith("### Instruction: ") and "\n### Input: " in text and text.endswith(RESPONSE_MARKER)
    assert GRAPH.texts[0] in text and "Even, Odd" in text
    assert not any(title in text for title in TITLES[1:]) and "[1]" not in text


def test_hop_two_lists_rings_and_links() -> None:
    text = prompt(GRAPH, 0, 2, title_words=1)
    assert text is not None
    assert "Directly linked to it (2 of 2): [1] cedar; [2] birch\n" in text
    assert "Two links away (1 of 1): [3] elder\n" in text
    assert "Links: [0]-[1], [0]-[2], [1]-[3], [2]-[3]\n" in text
    assert "hazel" not in text


def test_a_hop_without_nodes_has_no_prompt() -> None:
    assert prompt(GRAPH, 5, 1) is None
    assert prompt(GRAPH, 0, 3) is not None and prompt(GRAPH, 0, 4) is None


def test_texts_are_cut_to_words_and_line_breaks_vanish() -> None:
    graph = TextGraph(["a b\nc d e", "f g\n\nh"], [[1], [0]], ["x"])
    text = prompt(graph, 0, 1, words=3, title_words=2)
    assert text is not None
    assert "Document [0]: a b c\n" in text and "[1] f g\n" in text


def test_length_is_bounded_whatever_the_degree() -> None:
    few, many = prompt(star(5), 0, 1), prompt(star(500), 0, 1)
    assert few is not None and many is not None
    assert len(many.split()) == len(few.split())


def test_first_neighbours_without_a_generator_and_a_seeded_sample_with_one() -> None:
    graph = star(50)
    first = prompt(graph, 0, 1, max_neighbours=3)
    assert first is not None and "(3 of 50): [1] leaf1; [2] leaf2; [3] leaf3" in first
    drawn = [prompt(graph, 0, 1, max_neighbours=3, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != first


def test_response_is_the_class_name() -> None:
    assert [response(GRAPH, label) for label in (0, 1)] == ["Even", "Odd"]


@pytest.mark.parametrize("index", [-1, 2])
def test_a_label_without_a_class_is_refused(index: int) -> None:
    with pytest.raises(DataError, match="no label"):
        response(GRAPH, index)


def test_a_node_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DataError, match="no node 6"):
        prompt(GRAPH, 6, 0)


@pytest.mark.parametrize(("texts", "neighbours"), [(["a"], []), (["a"], [[1]]), (["a"], [[-1]])])
def test_parts_that_disagree_are_refused(texts: list[str], neighbours: list[list[int]]) -> None:
    with pytest.raises(DataError):
        TextGraph(texts, neighbours, ["x"])


def test_prompts_import_no_torch() -> None:
    code = "import sys, kdbench.families.graph.node_classification.prompts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
