"""Self-attention Grad-CAM (SGC): class activation maps spread over look-alike cells.

A head beside the decoder, for training only. It belongs to the method, not to the deployed network;
its variables have the published names (`hyper_column/...`, `pixel_normalization/...`).

Source: Zou et al., "PseudoSeg", ICLR 2021, section 3.2; specification 5.4.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfseg.models.layers.batch_norm import BatchNorm
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.initial_values import xavier_uniform
from tfseg.models.layers.settings import Layer, Settings
from tfseg.ops.cam import attention_scores, with_background
from tfseg.ops.resize import resize_bilinear, resize_nearest

_DECAY, _EPSILON = 0.999, 1e-3


class SelfAttentionCAM(Layer):
    """Refines class activation maps by attention over a hypercolumn of backbone features.

    With X the hypercolumn, q = X Wq, k = X Wk and P the softmax of their masked scores:
    Y = P cam + cam, a background channel 2 - max Y in front, and logits Z = BN(Y Wz). Version 1 has
    Y = P cam, background 1 - max Y and Z = Y Wz + b.

    Args:
      settings: of the network whose features it takes.
      in_channels: channels of the hypercolumn, all layers together.
      num_classes: classes of the logits.
      has_background: class 0 is background, made here; else every class has a map.
      attention_dim: channels of query and key.
      version: 2 (published default) or 1.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        in_channels: int,
        num_classes: int,
        has_background: bool = True,
        attention_dim: int = 128,
        version: int = 2,
    ):
        super().__init__("self_attention_cam")
        # Scores, softmax and normalisation stay float32; the published batch norm here is
        # fine-tuned even where the network's is not.
        settings = settings.replace(compute_dtype="float32", fine_tune_batch_norm=True)
        self._version, self._has_background = version, has_background

        def linear(name: str, channels: int, filters: int, use_bias: bool = False) -> Conv2D:
            return Conv2D(
                settings,
                name,
                channels,
                filters,
                use_bias=use_bias,
                init=xavier_uniform,
                decayed=False,
            )

        self.key = linear("hyper_column/key", in_channels, attention_dim)
        self.query = linear("hyper_column/query", in_channels, attention_dim)
        self.projection = linear("pixel_normalization", num_classes, num_classes, version == 1)
        self.norm = None
        if version == 2:
            self.norm = BatchNorm(
                settings,
                "pixel_normalization/BatchNorm",
                num_classes,
                use_gamma=False,
                decay=_DECAY,
                epsilon=_EPSILON,
            )

    def call(
        self,
        maps: tf.Tensor,
        hypercolumn: Sequence[tf.Tensor],
        valid: tf.Tensor,
        training: bool = False,
        step: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Refines maps.

        Args:
          maps: normalised activation maps, float32 [N, h, w, K].
          hypercolumn: features of any size, deepest first, each float [N, h', w', D'].
          valid: float32 [N, H, W, 1], 1 = image, 0 = padding or cut-out.
          training: the pixel normalisation takes and records batch statistics; else it uses the
            moving ones.
          step: steps done so far, which lets the moving statistics follow faster at first; see
            `BatchNorm`. None: as published.

        Returns:
          'scores' and 'attention' float32 [N, hw, hw], queries by keys, before and after the
          softmax; 'maps' float32 [N, h, w, C], background first; 'logits' float32 [N, h, w, C].
        """
        size = maps.shape[1:3]
        cells = size[0] * size[1]
        x = tf.concat([resize_bilinear(tf.cast(f, tf.float32), size) for f in hypercolumn], -1)
        query, key = (
            tf.reshape(layer(x), [-1, cells, layer.out_channels])
            for layer in (self.query, self.key)
        )
        mask = tf.reshape(resize_nearest(valid, size), [-1, cells])
        scores = attention_scores(query, key, mask)
        attention = tf.nn.softmax(scores)
        refined = tf.matmul(attention, tf.reshape(maps, [-1, cells, maps.shape[-1]]))
        refined = tf.reshape(refined, tf.shape(maps))
        if self._version == 2:
            refined += maps
        if self._has_background:
            refined = with_background(refined, ceiling=float(self._version))
        logits = self.projection(refined)
        if self.norm is not None:
            logits = self.norm(logits, training=training, step=step)
        return {"scores": scores, "attention": attention, "maps": refined, "logits": logits}
