"""The graph of a label map's regions: which touch which.

Integer work on small maps, in NumPy.

Source: Bucher et al., "Zero-shot semantic segmentation", NeurIPS 2019, section 3.3; ZS3
specification 4.5.
"""

import dataclasses

import numpy as np
from scipy import ndimage

# A pixel's neighbours that come later in reading order; with these every pair is found once.
_LATER = ((0, 1), (1, -1), (1, 0), (1, 1))


@dataclasses.dataclass(frozen=True)
class RegionGraph:
    """Regions of equal label and their neighbours.

    Attributes:
      nodes: int32 [h, w], the node of every pixel.
      first: int32 [K], index of each node's first pixel in reading order, ascending.
      adjacency: float32 [K, K], 1 where regions touch; symmetric, 0 on the diagonal.
    """

    nodes: np.ndarray
    first: np.ndarray
    adjacency: np.ndarray


def region_graph(label: np.ndarray) -> RegionGraph:
    """Builds the graph of a label map.

    Args:
      label: [h, w], any type; every value is a class of its own, void too.

    Returns:
      Nodes are the 8-connected regions of equal label, numbered by their first pixel in reading
      order; regions with a pair of 8-adjacent pixels have an edge.

    Source: ZS3 specification 4.5.
    """
    label = np.asarray(label)
    regions = np.zeros(label.shape, np.int32)
    count = 0
    for value in np.unique(label):
        part, found = ndimage.label(label == value, structure=np.ones((3, 3)))
        regions += np.where(part > 0, part + count, 0).astype(np.int32)
        count += found
    _, first, inverse = np.unique(regions, return_index=True, return_inverse=True)
    order = np.argsort(first)
    nodes = np.argsort(order)[inverse].reshape(label.shape).astype(np.int32)
    return RegionGraph(nodes, first[order].astype(np.int32), _adjacency(nodes, len(first)))


def _adjacency(nodes: np.ndarray, count: int) -> np.ndarray:
    height, width = nodes.shape
    adjacency = np.zeros((count, count), np.float32)
    for down, right in _LATER:
        left = max(-right, 0)
        here = nodes[: height - down, left : width - max(right, 0)]
        there = nodes[down:, left + right : width + min(right, 0)]
        adjacency[here, there] = adjacency[there, here] = 1.0
    np.fill_diagonal(adjacency, 0.0)
    return adjacency
