"""Generators of pixel features: from a class's word vector and noise to what a network would see.

Functions of weights and draws, and classes that hold the weights. Where training goes on inside a
step, weights are values and not variables; so the functions take them as arguments.

Source: Bucher et al., "Zero-shot semantic segmentation", NeurIPS 2019, section 3.2 and 3.3; ZS3
specification 3.4, 3.5.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfseg.models.layers.initial_values import constant, xavier_uniform
from tfseg.models.layers.settings import Settings

# Share of hidden units that dropout takes.
DROPOUT_RATE = 0.5
_SLOPE = 0.2
_BIAS = 0.01

Weights = Sequence[tf.Tensor | tf.Variable]


def dense(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Maps [..., D] to [..., F] with a kernel [D, F] and a bias [F]."""
    return tf.tensordot(x, tf.convert_to_tensor(kernel), 1) + bias


def graph_layer(
    x: tf.Tensor, adjacency: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor
) -> tf.Tensor:
    """Maps nodes [K, D] to [K, F]: each is the sum over its neighbours, adjacency [K, K]."""
    return tf.matmul(adjacency, tf.matmul(x, tf.convert_to_tensor(kernel))) + bias


def hidden_units(x: tf.Tensor, keep: tf.Tensor | None) -> tf.Tensor:
    """Applies the leaky rectifier and, with `keep` (bool, like x), dropout."""
    x = tf.nn.leaky_relu(x, _SLOPE)
    return x if keep is None else tf.where(keep, x / (1.0 - DROPOUT_RATE), 0.0)


def generate(
    weights: Weights, vectors: tf.Tensor, noise: tf.Tensor, keep: tf.Tensor | None = None
) -> tf.Tensor:
    """Generates one feature for each word vector.

    Args:
      weights: kernel and bias of each of two layers, or of one.
      vectors: float32 [..., E] word vectors.
      noise: float32 [..., Z].
      keep: bool [..., H], hidden units that dropout leaves; None: no dropout. Not used with one
        layer.

    Returns:
      float32 [..., D].

    Source: ZS3 specification 3.4.
    """
    x = dense(tf.concat([vectors, noise], -1), *weights[:2])
    return x if len(weights) == 2 else dense(hidden_units(x, keep), *weights[2:])


def generate_on_graph(
    weights: Weights,
    adjacency: tf.Tensor,
    vectors: tf.Tensor,
    noise: tf.Tensor,
    keep: tf.Tensor | None = None,
) -> tf.Tensor:
    """Generates one feature for each node of a graph, from its neighbourhood of two steps.

    A node's own word reaches its feature by way of its neighbours alone, as published: the
    adjacency has no loops and is not normalised.

    Args:
      weights: kernel and bias of two layers.
      adjacency: float32 [K, K], symmetric.
      vectors: float32 [K, E] word vectors of the nodes.
      noise: float32 [K, Z].
      keep: bool [K, H], hidden units that dropout leaves; None: no dropout.

    Returns:
      float32 [K, D].

    Source: ZS3 specification 3.5.
    """
    x = graph_layer(tf.concat([vectors, noise], -1), adjacency, *weights[:2])
    return graph_layer(hidden_units(x, keep), adjacency, *weights[2:])


class Generator(tf.Module):
    """The weights of a generator, for `generate` or `generate_on_graph`.

    Args:
      settings: name of the network (two generators of different names start differently) and seed.
      inputs: width of a word vector and its noise together.
      hidden: hidden units; 0: one linear layer.
      outputs: channels of a feature.
      trainable: an optimiser of the run updates the weights.

    Source: ZS3 specification 3.4: Xavier-uniform kernels, biases of 0.01.
    """

    def __init__(
        self, settings: Settings, *, inputs: int, hidden: int, outputs: int, trainable: bool
    ):
        super().__init__(name=settings.network)
        widths = [inputs, hidden, outputs] if hidden else [inputs, outputs]
        self.weights: list[tf.Variable] = []
        for i, shape in enumerate(zip(widths, widths[1:])):
            for leaf, size, init in (
                ("weights", shape, xavier_uniform),
                ("biases", shape[1:], constant(_BIAS)),
            ):
                drawn = settings.variable(f"{settings.network}/layer{i}/{leaf}", size, init)
                self.weights.append(drawn if trainable else _untrained(drawn))


def _untrained(variable: tf.Variable) -> tf.Variable:
    """Returns a copy that no tape watches; updates inside a step are done on one replica alone."""
    return tf.Variable(variable, trainable=False, name=variable.name.split(":")[0])
