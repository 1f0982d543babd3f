"""Features of pixels, generated for unseen classes, and the generator's training on seen ones.

Source: Bucher et al., "Zero-shot semantic segmentation", NeurIPS 2019, section 3.2; ZS3
specification 4.2, 4.3.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfseg.methods import zero_label
from tfseg.methods.zs3net_parts.draws import GeneratorDraws
from tfseg.methods.zs3net_parts.matching import MatchingGenerator
from tfseg.methods.zs3net_parts.scenes import Scenes
from tfseg.models import gmmn
from tfseg.ops import adam
from tfseg.settings.methods.zs3net import ZS3NetConfig


class PixelFeatures:
    """Makes the features of a step's pixels, and trains the generator on real ones.

    Args:
      generator: of features of pixels.
      words: from labels, int32 [...], to word vectors, float32 [..., E].
      settings: of the method, complete.
      seen, unseen: class ids, sorted.
      ignore_label: of void.
      fixed_shapes: shapes may not depend on values, as in compiled code.
    """

    def __init__(
        self,
        generator: MatchingGenerator,
        words: Callable[[tf.Tensor], tf.Tensor],
        settings: ZS3NetConfig,
        *,
        seen: Sequence[int],
        unseen: Sequence[int],
        ignore_label: int,
        fixed_shapes: bool,
    ):
        self._generator, self._words, self._settings = generator, words, settings
        self._seen, self._unseen, self._ignore_label = seen, unseen, ignore_label
        self._fixed_shapes = fixed_shapes

    def _is_unseen(self, label: tf.Tensor) -> tf.Tensor:
        return zero_label.among(label, self._unseen)

    def matched(
        self, scenes: Scenes, draws: GeneratorDraws
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Trains the generator, where that is done inside the step, and makes all features.

        Returns:
          The loss of every image and seen class, float32 [N, S], 0 where there is none (with
          `generator_updates='mean'` it has a gradient); where there is one, bool [N, S]; features
          for the classifier, float32 [N, h, w, D].
        """
        places, active = self.places(scenes, draws)
        if not self._generator.sequential:
            made = [
                self.made(self._generator.weights, scenes, draws, i)
                for i in range(scenes.label.shape[0])
            ]
            return self._all_at_once(scenes, draws, places, active), active, tf.stack(made)
        state = self._generator.state()
        losses, made = [], []
        for i in range(scenes.label.shape[0]):
            # What is made of an image does not know of its own updates.
            made.append(self.made(state[0], scenes, draws, i))
            state, of_image = self._one_by_one(state, scenes, draws, places, active[i], i)
            losses.append(of_image)
        self._generator.assign(state)
        return tf.stack(losses), active, tf.stack(made)

    def places(self, scenes: Scenes, draws: GeneratorDraws) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns which pixels are compared, int32 [N, S, samples], and where there are any."""
        images = scenes.label.shape[0]
        label = tf.reshape(scenes.label, [images, 1, -1])
        number = tf.cumsum(tf.cast(label == tf.constant(self._seen)[:, None], tf.int32), axis=-1)
        count = number[..., -1]
        limit = tf.cast(count, tf.float32)[..., None]
        chosen = tf.minimum(tf.cast(draws.pixel * limit, tf.int32), count[..., None] - 1) + 1
        places = tf.minimum(tf.searchsorted(number, chosen), label.shape[-1] - 1)
        real = ~tf.reduce_any(self._is_unseen(scenes.label), [1, 2])
        return places, (count > 0) & real[:, None]

    def _discrepancy(
        self, weights: gmmn.Weights, scenes: Scenes, draws: GeneratorDraws, places, pairs
    ) -> tf.Tensor:
        """Returns how far generated features are from real ones, float32 [P].

        Args:
          weights: of the generator.
          scenes, draws: of the step.
          places: of `places`.
          pairs: int [P, 2], images and numbers of seen classes.
        """
        place = tf.gather_nd(places, pairs)
        image = tf.broadcast_to(tf.cast(pairs[:, :1], tf.int32), tf.shape(place))
        index = tf.stack([image, place], -1)

        def at(maps: tf.Tensor | None) -> tf.Tensor | None:
            if maps is None:
                return None
            return tf.gather_nd(tf.reshape(maps, [maps.shape[0], -1, maps.shape[-1]]), index)

        classes = tf.gather(tf.constant(self._seen), pairs[:, 1])
        vectors = self._words(tf.broadcast_to(classes[:, None], tf.shape(place)))
        generated = gmmn.generate(weights, vectors, at(draws.noise), at(draws.keep))
        return self._generator.discrepancy(generated, at(scenes.features))

    def _all_at_once(self, scenes: Scenes, draws: GeneratorDraws, places, active) -> tf.Tensor:
        """Returns the losses of all images and classes with the weights as they are."""
        if self._fixed_shapes:  # Compiled code has to know how many there are.
            pairs = tf.constant(list(np.ndindex(*active.shape)), tf.int64)
        else:
            pairs = tf.where(active)
        losses = self._discrepancy(self._generator.weights, scenes, draws, places, pairs)
        losses = tf.scatter_nd(tf.cast(pairs, tf.int32), losses, active.shape)
        return tf.where(active, losses, 0.0)

    def _one_by_one(
        self, state: adam.State, scenes: Scenes, draws: GeneratorDraws, places, active, image: int
    ) -> tuple[adam.State, tf.Tensor]:
        """Does an update for every seen class of an image, in the order of their ids.

        Returns:
          The state after them, and the losses, float32 [S].
        """
        count = len(self._seen)

        def update(state: adam.State, k: tf.Tensor):
            return self._generator.update(
                state,
                lambda weights: self._discrepancy(
                    weights, scenes, draws, places, tf.stack([image, k])[None]
                )[0],
            )

        def body(k, state, losses):
            state, loss = tf.cond(
                active[k], lambda: update(state, k), lambda: (state, tf.constant(0.0))
            )
            return k + 1, state, losses + loss * tf.one_hot(k, count)

        _, state, losses = tf.while_loop(
            lambda k, *_: k < count,
            body,
            (tf.constant(0), state, tf.zeros([count])),
            maximum_iterations=count,
        )
        return state, losses

    def made(
        self, weights: gmmn.Weights, scenes: Scenes, draws: GeneratorDraws, i: int
    ) -> tf.Tensor:
        """Returns the features of an image for the classifier, float32 [h, w, D]."""

        def generated() -> tf.Tensor:
            layout = scenes.layout[i]
            keep = draws.keep if self._settings.sampling_dropout else None
            fake = gmmn.generate(
                weights, self._words(layout), draws.noise[i], None if keep is None else keep[i]
            )
            if self._settings.generated_pixels == "unseen":
                return tf.where(self._is_unseen(layout)[..., None], fake, scenes.features[i])
            return tf.where((layout == self._ignore_label)[..., None], 0.0, fake)

        return tf.cond(scenes.synthetic[i], generated, lambda: scenes.features[i])
