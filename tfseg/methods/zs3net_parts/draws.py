"""The random numbers of a step of ZS3Net; each use has its own."""

import dataclasses

import tensorflow as tf

from tfseg.models import gmmn
from tfseg.models.layers.dropout import fold_seed
from tfseg.settings.methods.zs3net import ZS3NetConfig

# Folded into the seed of the step.
MADE, LAYOUT, _NOISE, _KEEP, _PIXEL, _NODE_NOISE, _NODE_KEEP = range(7)


@dataclasses.dataclass(frozen=True)
class GeneratorDraws:
    """The random numbers of the generators in a step.

    Attributes:
      noise: float32 [N, h, w, Z].
      keep: bool [N, h, w, hidden units], the units that dropout keeps; None without hidden units.
      pixel: float32 [N, S, generator_samples] in [0, 1), for each of S seen classes: the places
        of the compared pixels among the class's pixels, as a share of their number.
      node_noise, node_keep: as noise and keep, for regions, at their first pixels; or None.
    """

    noise: tf.Tensor
    keep: tf.Tensor | None
    pixel: tf.Tensor
    node_noise: tf.Tensor | None = None
    node_keep: tf.Tensor | None = None


def draw_for_generators(
    size: tuple[int, int, int],
    seed: tf.Tensor,
    settings: ZS3NetConfig,
    *,
    num_seen: int,
    noise_dim: int,
) -> GeneratorDraws:
    """Draws noise, dropout and the pixels that are compared.

    Args:
      size: images, height and width of their features.
      seed: int32 [2], of the step.
      settings: of the method.
      num_seen: number of seen classes, S.
      noise_dim: width of the noise, Z.
    """
    images, height, width = size

    def noise(use: int) -> tf.Tensor:
        shape = [images, height, width, noise_dim]
        draw = {"seed": fold_seed(seed, use), "alg": "philox"}
        if settings.noise == "gaussian":
            return tf.random.stateless_normal(shape, **draw)
        return tf.random.stateless_uniform(shape, **draw)

    def keep(use: int) -> tf.Tensor | None:
        if not settings.generator_hidden:
            return None
        shape = [images, height, width, settings.generator_hidden]
        draw = tf.random.stateless_uniform(shape, fold_seed(seed, use), alg="philox")
        return draw >= gmmn.DROPOUT_RATE

    pixel = tf.random.stateless_uniform(
        [images, num_seen, settings.generator_samples],
        fold_seed(seed, _PIXEL),
        alg="philox",
    )
    graph = settings.graph_context
    return GeneratorDraws(
        noise=noise(_NOISE),
        keep=keep(_KEEP),
        pixel=pixel,
        node_noise=noise(_NODE_NOISE) if graph else None,
        node_keep=keep(_NODE_KEEP) if graph else None,
    )
