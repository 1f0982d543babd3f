"""Features of the regions of label maps, real ones or generated along the graph of neighbours.

Source: Bucher et al., "Zero-shot semantic segmentation", NeurIPS 2019, section 3.3; ZS3
specification 4.5.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfseg.methods.zs3net_parts.matching import MatchingGenerator
from tfseg.models import gmmn
from tfseg.ops.region_graph import region_graph


@dataclasses.dataclass(frozen=True)
class Nodes:
    """The regions of all layouts of a step.

    Attributes:
      label: int32 [T].
      features: float32 [T, D], generated ones without gradient.
      losses: float32 [N], discrepancy of generated and real nodes of an image; 0 where it has no
        graph (a single region) or no real nodes.
      trained: bool [N], where there is such a loss.
    """

    label: tf.Tensor
    features: tf.Tensor
    losses: tf.Tensor
    trained: tf.Tensor


@dataclasses.dataclass(frozen=True)
class _Graph:
    """An image's regions, and what its real and generated features are made of.

    Attributes:
      first: int32 [K], a region's first pixel.
      adjacency: float32 [K, K].
      label: int32 [K].
      real: float32 [K, D].
      noise: float32 [K, Z].
      keep: bool [K, hidden units].
    """

    first: tf.Tensor
    adjacency: tf.Tensor
    label: tf.Tensor
    real: tf.Tensor
    noise: tf.Tensor
    keep: tf.Tensor


class RegionFeatures:
    """Makes the regions of a step's layouts, and trains the generator on them.

    Args:
      generator: of features of regions.
      words: from labels, int32 [K], to word vectors, float32 [K, E].
      sampling_dropout: dropout also where features are made for the classifier.
    """

    def __init__(
        self,
        generator: MatchingGenerator,
        words: Callable[[tf.Tensor], tf.Tensor],
        *,
        sampling_dropout: bool,
    ):
        self._generator, self._words = generator, words
        self._sampling_dropout = sampling_dropout

    def nodes(
        self,
        layout: tf.Tensor,
        features: tf.Tensor,
        synthetic: tf.Tensor,
        *,
        noise: tf.Tensor,
        keep: tf.Tensor,
    ) -> Nodes:
        """Returns the regions of all layouts; trains the generator, where a step does that.

        Args:
          layout: int32 [N, h, w].
          features: float32 [N, h, w, D], real ones.
          synthetic: bool [N], whether an image's features are generated; the others train.
          noise: float32 [N, h, w, Z], of a region at its first pixel.
          keep: bool [N, h, w, hidden units], what dropout leaves, likewise.
        """
        counts, first, adjacency = _graphs(layout)
        sequential = self._generator.sequential
        weights = self._generator.weights
        state = self._generator.state() if sequential else None
        losses, made, labels = [], [], []
        for i in range(layout.shape[0]):
            own = first[i, : counts[i]]
            graph = _Graph(
                own,
                adjacency[i, : counts[i], : counts[i]],
                tf.gather(tf.reshape(layout[i], [-1]), own),
                *(_at_pixels(x[i], own) for x in (features, noise, keep)),
            )
            weights = state[0] if sequential else weights
            labels.append(graph.label)
            made.append(self._for_classifier(weights, graph, synthetic[i]))
            state, loss = self._loss(state, graph, ~synthetic[i] & (counts[i] > 0))
            losses.append(loss)
        if sequential:
            self._generator.assign(state)
        return Nodes(
            label=tf.concat(labels, 0),
            features=tf.stop_gradient(tf.concat(made, 0)),
            losses=tf.stack(losses),
            trained=~synthetic & (counts > 0),
        )

    def _for_classifier(self, weights, graph: _Graph, synthetic: tf.Tensor) -> tf.Tensor:
        """Returns the features of an image's regions, float32 [K, D]."""
        keep = graph.keep if self._sampling_dropout else None
        return tf.cond(synthetic, lambda: self._generated(weights, graph, keep), lambda: graph.real)

    def _loss(self, state, graph: _Graph, trained: tf.Tensor):
        """Returns how far an image's generated nodes are from its real ones, 0 if not `trained`.

        Returns:
          The state after an update by it, where updates are part of the step; and the loss.
        """

        def compare(weights) -> tf.Tensor:
            generated = self._generated(weights, graph, graph.keep)
            return self._generator.discrepancy(generated, graph.real)

        nothing = tf.constant(0.0)
        if state is None:
            weights = self._generator.weights
            return None, tf.cond(trained, lambda: compare(weights), lambda: nothing)
        return tf.cond(
            trained, lambda: self._generator.update(state, compare), lambda: (state, nothing)
        )

    def _generated(self, weights, graph: _Graph, keep: tf.Tensor | None) -> tf.Tensor:
        return gmmn.generate_on_graph(
            weights, graph.adjacency, self._words(graph.label), graph.noise, keep
        )


def _at_pixels(x: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns [K, D], the values of a map [h, w, D] at pixels in reading order."""
    return tf.gather(tf.reshape(x, [-1, x.shape[-1]]), index)


def _graphs(label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the graphs of label maps, int32 [N, h, w], padded to the largest.

    Returns:
      Numbers of nodes, int32 [N], 0 for a single region; first pixels, int32 [N, K]; adjacency,
      float32 [N, K, K].
    """

    def make(label) -> Sequence:
        graphs = [region_graph(each) for each in label]
        counts = [len(g.first) if len(g.first) > 1 else 0 for g in graphs]
        first = np.zeros([len(graphs), max(counts)], np.int32)
        adjacency = np.zeros([len(graphs), max(counts), max(counts)], np.float32)
        for i, (graph, count) in enumerate(zip(graphs, counts)):
            first[i, :count] = graph.first[:count]
            adjacency[i, :count, :count] = graph.adjacency[:count, :count]
        return np.array(counts, np.int32), first, adjacency

    counts, first, adjacency = tf.numpy_function(
        make, [label], (tf.int32, tf.int32, tf.float32), stateful=False
    )
    images = label.shape[0]
    return (
        tf.ensure_shape(counts, [images]),
        tf.ensure_shape(first, [images, None]),
        tf.ensure_shape(adjacency, [images, None, None]),
    )
