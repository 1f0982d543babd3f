"""Region graphs: hand-drawn maps, and random ones against the definition."""

import numpy as np
import pytest

from tfseg.ops.region_graph import region_graph


def _map(text):
    return np.array([[int(c) for c in row] for row in text.split()])


def test_a_drawn_map():
    graph = region_graph(
        _map("""
        00011
        00911
        22200
        22000""")
    )
    # The 9 touches both zero regions, above and below, and all others.
    expected = _map("""
        00011
        00211
        33344
        33444""")
    np.testing.assert_array_equal(graph.nodes, expected)
    np.testing.assert_array_equal(graph.first, [0, 3, 7, 10, 13])
    edges = {tuple(e) for e in np.argwhere(np.triu(graph.adjacency))}
    assert edges == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)}


def test_corners_connect():
    """Both diagonals are one region each, and neighbours."""
    graph = region_graph(_map("01 10"))
    np.testing.assert_array_equal(graph.nodes, [[0, 1], [1, 0]])
    np.testing.assert_array_equal(graph.adjacency, [[0, 1], [1, 0]])


def test_one_region_is_one_node_without_edges():
    graph = region_graph(np.full((3, 4), 7))
    assert graph.first.tolist() == [0] and graph.adjacency.tolist() == [[0.0]]


def test_void_is_a_node_like_any_other():
    label = np.array([[1, 255, 2]])
    graph = region_graph(label)
    assert label.reshape(-1)[graph.first].tolist() == [1, 255, 2]
    np.testing.assert_array_equal(graph.adjacency, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 11)])
def test_random_maps_follow_the_definition(shape):
    label = np.random.default_rng(sum(shape)).integers(0, 3, shape)
    graph = region_graph(label)
    nodes, count = graph.nodes, len(graph.first)
    assert graph.adjacency.dtype == np.float32 and nodes.dtype == graph.first.dtype == np.int32
    np.testing.assert_array_equal(nodes.reshape(-1)[graph.first], np.arange(count))
    expected = np.zeros((count, count))
    for y, x in np.ndindex(shape):
        # Numbers are given in reading order.
        assert graph.first[nodes[y, x]] <= y * shape[1] + x
        for v, u in np.ndindex(shape):
            if max(abs(y - v), abs(x - u)) == 1:
                # Neighbours are one region where their labels are equal, and two elsewhere.
                assert (label[y, x] == label[v, u]) == (nodes[y, x] == nodes[v, u])
                expected[nodes[y, x], nodes[v, u]] = nodes[y, x] != nodes[v, u]
    np.testing.assert_array_equal(graph.adjacency, expected)
    assert (np.diff(graph.first) > 0).all()
