"""Cross-view low-rank factorisation (CVLR), and what SLRNet does with shallow features after it.

All pixels of the views of an image are written as mixtures of as many bases as there are classes;
their features at this rank are added to the features themselves. Nothing is kept between batches:
the bases start as the mean features of each class, by an auxiliary prediction for the first view.

Every product here is of pixels by classes or by channels; none is of pixels by pixels.

Source: Pan et al., "Learning self-supervised low-rank network for single-stage weakly and
semi-supervised semantic segmentation", IJCV 2022; specification 3 and 4.1.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfseg.models.layers.batch_norm import BatchNorm
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.dropout import dropout_key
from tfseg.models.layers.initial_values import uniform_fan_in
from tfseg.models.layers.settings import Layer, Settings
from tfseg.models.layers.units import ConvBatchNorm

# Keeps divisions away from zero wherever the published code does.
_EPSILON = 1e-6


def initial_bases(logits: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
    """Averages features into one basis for each class.

    A = softmax over classes of the logits, D0_k = Σ_n A_nk x_n / (Σ_n A_nk + 1e-6).

    Args:
      logits: float [N, h, w, K].
      features: float [N, h, w, D].

    Returns:
      float32 [N, K, D]. The caller stops its gradient in training, as published.

    Source: specification 4.1.
    """
    shares = tf.nn.softmax(_rows(logits))
    shares /= tf.reduce_sum(shares, 1, keepdims=True) + _EPSILON
    return tf.matmul(shares, _rows(features), transpose_a=True)


class LowRank(Layer):
    """Factorises the pixels of one or several views together, and reconstructs them.

    With X the pixels of all views [M, D] and D0 the initial bases:

    1. Z = X W1 + b1; D = D0 W1 + b1, each basis divided by 1e-6 + its length.
    2. `iterations` times: codes C = softmax over bases of Z D^T / temperature; weights
       A = C + 1e-6, divided by their sum over the pixels; D = A^T Z, divided by length as before.
    3. Y = relu(C D) with the last codes and the bases that came out of them;
       result relu(X + Y W2 + b2).

    Gradients flow through all iterations.

    Args:
      settings: seed; the factorisation is in float32.
      channels: D.
      iterations: T.
      temperature: of the softmax.
    """

    def __init__(
        self, settings: Settings, channels: int, *, iterations: int = 1, temperature: float = 1.0
    ):
        super().__init__("low_rank")
        self._iterations, self._temperature = iterations, temperature
        self.transforms = [
            Conv2D(
                settings,
                f"low_rank/transform{i}",
                channels,
                channels,
                use_bias=True,
                init=uniform_fan_in(channels),
                bias_init=uniform_fan_in(channels),
                compute_dtype="float32",
            )
            for i in (1, 2)
        ]

    def call(
        self, views: Sequence[tf.Tensor], bases: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor], tf.Tensor]:
        """Factorises.

        Args:
          views: features of each view, float [N, h, w, D], of any sizes.
          bases: float32 [N, K, D], of `initial_bases`.

        Returns:
          features of each view in its type and size; codes of each view, float32 [N, h, w, K], sum
          1; and the bases, float32 [N, K, D], of length 1.
        """
        first, second = self.transforms
        pixels = tf.concat([_rows(view) for view in views], 1)
        z = first(pixels[:, :, None])[:, :, 0]
        bases = _unit_length(first(bases[:, :, None])[:, :, 0])
        for _ in range(self._iterations):
            similarity = tf.matmul(z, bases, transpose_b=True)
            codes = tf.nn.softmax(similarity / self._temperature)
            weights = codes + _EPSILON
            weights /= tf.reduce_sum(weights, 1, keepdims=True)
            bases = _unit_length(tf.matmul(weights, z, transpose_a=True))
        low_rank = tf.nn.relu(tf.matmul(codes, bases))
        result = tf.nn.relu(pixels + second(low_rank[:, :, None])[:, :, 0])
        sizes = [tf.shape(view)[1] * tf.shape(view)[2] for view in views]

        def of_views(rows: tf.Tensor) -> list[tf.Tensor]:
            parts = tf.split(rows, sizes, axis=1, num=len(views))
            return [_image(part, view) for part, view in zip(parts, views)]

        features = [tf.cast(x, view.dtype) for x, view in zip(of_views(result), views)]
        return features, of_views(codes), bases


def _rows(x: tf.Tensor) -> tf.Tensor:
    """Flattens [N, h, w, D] to float32 [N, h w, D]."""
    return tf.reshape(tf.cast(x, tf.float32), [tf.shape(x)[0], -1, x.shape[-1]])


def _image(rows: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Gives [N, h w, K] the sides of a view."""
    result = tf.reshape(rows, tf.concat([tf.shape(like)[:3], [rows.shape[-1]]], 0))
    return tf.ensure_shape(result, [*like.shape[:3], rows.shape[-1]])


def _unit_length(bases: tf.Tensor) -> tf.Tensor:
    # tf.norm has no gradient at zero, which a basis without pixels can be.
    square = tf.reduce_sum(tf.square(bases), -1, keepdims=True)
    length = tf.where(square > 0, tf.sqrt(tf.where(square > 0, square, 1.0)), 0.0)
    return bases / (_EPSILON + length)


class GlobalCueInjection(Layer):
    """Modulates shallow features by what the deep ones say of the image as a whole (GCI).

    γ, β = maximum over space of relu(bn(deep W)); result
    relu(bn(relu(bn(shallow W') (γ + 1) + β) W'')), where the middle norm has no scale and shift.

    Args:
      settings: types, batch norm, initial values.
      shallow_channels: of the shallow features.
      channels: of the deep features and of the result.

    Source: specification 3.
    """

    def __init__(self, settings: Settings, shallow_channels: int, channels: int):
        super().__init__("global_cue")
        relu = settings.activation
        self.deep = ConvBatchNorm(
            Conv2D(settings, "global_cue/deep", channels, 2 * channels), settings, activation=relu
        )
        self.shallow = Conv2D(settings, "global_cue/shallow", shallow_channels, channels)
        self.shallow_norm = BatchNorm(
            settings, "global_cue/shallow/BatchNorm", channels, use_gamma=False, use_beta=False
        )
        self.output_unit = ConvBatchNorm(
            Conv2D(settings, "global_cue/output", channels, channels), settings, activation=relu
        )
        self._activation = relu

    def call(self, shallow: tf.Tensor, deep: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [N, h, w, shallow_channels] and [N, h, w, channels] to [N, h, w, channels]."""
        cue = tf.reduce_max(self.deep(deep, training=training), [1, 2], keepdims=True)
        scale, shift = tf.split(cue, 2, axis=-1)
        x = self.shallow_norm(self.shallow(shallow), training=training)
        return self.output_unit(self._activation(x * (scale + 1) + shift), training=training)


def gate(
    deep: tf.Tensor,
    shallow: tf.Tensor,
    keep_deep: tf.Tensor,
    *,
    share: float,
    kind: str = "published",
) -> tf.Tensor:
    """Takes the one or the other, entry by entry.

    With deep features kept at probability 1 - α the expected value of 'mixture' is the mixture of
    evaluation, (1 - α) deep + α shallow. That of 'published' is `deep`: the layers behind the gate
    are then trained on other features than those they are evaluated on.

    Args:
      deep, shallow: float, of one shape.
      keep_deep: bool of that shape.
      share: α.
      kind: 'published' or 'mixture'.

    Returns:
      Where `keep_deep`, (deep - α shallow) / (1 - α) ('published') or `deep` ('mixture');
      `shallow` elsewhere.

    Source: specification 3 ('published'); 'mixture' is ours.
    """
    kept = deep if kind == "mixture" else (deep - share * shallow) / (1.0 - share)
    return tf.where(keep_deep, kept, shallow)


class StochasticGate(Layer):
    """Mixes deep and shallow features; in training it takes one of them at random.

    Args:
      share: α, of the shallow features in evaluation and of the entries that take them in training.
      kind: what `gate` takes in training: 'published' or 'mixture'.

    Source: specification 3.
    """

    def __init__(self, share: float = 0.3, *, kind: str = "published"):
        super().__init__("stochastic_gate")
        self._share, self._kind = share, kind
        self._key = dropout_key(self.name)

    def call(
        self,
        deep: tf.Tensor,
        shallow: tf.Tensor,
        training: bool = False,
        dropout_seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns (1 - α) deep + α shallow; in training `gate` with probability 1 - α of deep."""
        if not training:
            return (1.0 - self._share) * deep + self._share * shallow
        seed = tf.random.experimental.stateless_fold_in(dropout_seed, self._key)
        draw = tf.random.stateless_uniform(tf.shape(deep), seed, alg="philox")
        return gate(deep, shallow, draw >= self._share, share=self._share, kind=self._kind)
