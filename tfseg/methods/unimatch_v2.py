"""UniMatch V2: an averaged teacher, and two strong views with complementary channels.

1. The teacher, a moving average of the network, predicts the weak views.
2. The donor of an image is the image at the mirrored place of the batch. A rectangle of it is
   pasted into each strong view.
3. Labelled images pass the network. The two strong views pass it together. Between backbone and
   decoder, each view drops the channels that the other one keeps; kept channels are doubled. Half
   of the images keep all channels in both views.

The average starts as a copy of the network. After the first step nothing of this copy is left. It
is deployed with --network=ema.

Source: Yang et al., "UniMatch V2: Pushing the limit of semi-supervised semantic segmentation",
TPAMI 2025; UniMatch specification 4. Ours: features of other widths than the first have a mask of
their own (DINOv2's four have one width).
"""

import tensorflow as tf

from tfseg.methods.fixmatch_v2 import LABELLED, MASKS, STRONG, FixMatchV2
from tfseg.methods.weak_to_strong import Mixed
from tfseg.models.layers.dropout import fold_seed
from tfseg.settings.methods.weak_to_strong import UniMatchV2Config


class UniMatchV2(FixMatchV2):
    """Two strong views with complementary channel dropout."""

    Config = UniMatchV2Config
    strong_views = 2

    def passes(
        self, labelled: tf.Tensor, views: list[Mixed], seed: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        of_labelled = self.model(labelled, training=True, dropout_seed=fold_seed(seed, LABELLED))[
            "logits"
        ]
        image = tf.concat([view.image for view in views], 0)
        strong_seed = fold_seed(seed, STRONG)
        ends = self.model.encode(image, training=True, dropout_seed=strong_seed)
        names, images = self.model.decoder_inputs, views[0].image.shape[0]
        masks = {
            width: self.channel_masks(images, width, fold_seed(fold_seed(seed, MASKS), width))
            for width in {ends[name].shape[-1] for name in names}
        }
        kept = {
            name: ends[name] * tf.cast(masks[ends[name].shape[-1]], ends[name].dtype)
            for name in names
        }
        logits = self.model.decode({**ends, **kept}, training=True, dropout_seed=strong_seed)
        of_views = tf.split(self.logits_of(logits["logits"], image), len(views))
        return self.logits_of(of_labelled, labelled), of_views

    def channel_masks(self, images: int, channels: int, seed: tf.Tensor) -> tf.Tensor:
        """Draws the factors of both views' channels.

        Args:
          images: U, in a view.
          channels: D.
          seed: int32 [2].

        Returns:
          float32 [2 U, 1, 1, D] of 0 and 2, all of view 1 first; the two factors of a channel add
          up to 2. Of U // 2 images, drawn at random, all factors are 1.
        """
        of_channels = tf.random.stateless_uniform([images, channels], seed, alg="philox")
        first = 2.0 * tf.cast(of_channels < 0.5, tf.float32)
        of_images = tf.random.stateless_uniform([images], fold_seed(seed, 1), alg="philox")
        place = tf.argsort(tf.argsort(of_images))
        first = tf.where((place < images // 2)[:, None], 1.0, first)
        return tf.concat([first, 2.0 - first], 0)[:, None, None, :]
