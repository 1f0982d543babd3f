"""DINOv2: vision transformers whose tokens are patches of 14 x 14 pixels.

All end points have the stride of the patches. Four blocks give them, each through the one norm at
the end of the network; class and register tokens are left out.

Source: Oquab et al., "DINOv2: Learning robust visual features without supervision", TMLR 2024;
Darcet et al., "Vision transformers need registers", ICLR 2024; UniMatch specification 5.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from tfseg.models.backbones.base import STANDARDISED, Backbone, EndPoints
from tfseg.models.layers.convolutions import Conv2D
from tfseg.models.layers.initial_values import constant, truncated_normal, uniform_fan_in
from tfseg.models.layers.settings import Layer, Settings
from tfseg.models.layers.tokens import Dense, LayerNorm, Parameter
from tfseg.ops.resize import cubic_matrix, pillow_matrix, separable_linear
from tfseg.ops.shapes import sides

PATCH = 14
# Side, in patches, of the images that the position embedding was trained with.
_GRID = 37
_EPSILON = 1e-6
# What the published code adds to the size before it divides: the grid's samples lie by it.
_OFFSET = 0.1
_MLP_RATIO = 4
# Parts of a block that have variables, in the order of the published files.
_BLOCK_PARTS = (
    "norm1",
    "attn.qkv",
    "attn.proj",
    "ls1.gamma",
    "norm2",
    "mlp.fc1",
    "mlp.fc2",
    "ls2.gamma",
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What tells one vision transformer from another.

    Attributes:
      width: of the tokens.
      heads: of the attention; they share the width.
      taken: numbers of the four blocks that give end points, from 0; the last is the last block.
      registers: tokens that stand for no patch, beside the class token. The published networks with
        such tokens resize their position embedding in another way.
    """

    width: int
    heads: int
    taken: tuple[int, int, int, int] = (2, 5, 8, 11)
    registers: int = 0


_LARGE_TAKEN = (4, 11, 17, 23)
SHAPES = {
    "dinov2_vits14": Shape(384, 6),
    "dinov2_vitb14": Shape(768, 12),
    "dinov2_vitl14": Shape(1024, 16, _LARGE_TAKEN),
    "dinov2_vits14_reg": Shape(384, 6, registers=4),
    "dinov2_vitb14_reg": Shape(768, 12, registers=4),
    "dinov2_vitl14_reg": Shape(1024, 16, _LARGE_TAKEN, registers=4),
}


def position_matrix(
    size: int | tf.Tensor, other: int | tf.Tensor, *, antialias: bool
) -> np.ndarray | tf.Tensor:
    """Returns the matrix that resizes one side of the position embedding.

    Args:
      size: patches of the image along this side, an int or an int32 scalar tensor.
      other: along the other side. Where both are 37 the embedding stays as it is.
      antialias: as the networks with registers do it: the kernel, with A = -0.5, widens where the
        grid shrinks. False: A = -0.75, clamped at the ends, and sample i lies at
        (i + 0.5) 37 / (size + 0.1) - 0.5.

    Returns:
      float64 [size, 37]; a NumPy array where both sizes are ints.

    Source: UniMatch specification 5.
    """
    if isinstance(size, int) and isinstance(other, int):
        if size == other == _GRID:
            return np.eye(_GRID)
        return pillow_matrix(_GRID, size) if antialias else cubic_matrix(_GRID, _scale(size))
    size, grid = tf.convert_to_tensor(size), tf.constant(_GRID)
    if antialias:
        resized = pillow_matrix(grid, size)
    else:
        resized = cubic_matrix(grid, _scale(tf.cast(size, tf.float64)))
    stays = (size == _GRID) & (other == _GRID)
    return tf.where(stays, tf.eye(size, _GRID, dtype=tf.float64), resized)


def _scale(size):
    return (size + _OFFSET) / _GRID


class Attention(Layer):
    """Self-attention of several heads; scores and softmax are float32.

    Args:
      settings: types, seed, initial values.
      name: scope of `qkv` and `proj`.
      width: of the tokens.
      heads: they share it.
    """

    def __init__(self, settings: Settings, name: str, width: int, heads: int):
        super().__init__(name)
        self._heads, self._width = heads, width
        self.qkv = Dense(settings, f"{name}/qkv", width, 3 * width)
        self.proj = Dense(settings, f"{name}/proj", width, width)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps [N, T, width] to the same in the compute type."""
        batch, count = sides(x, (0, 1))
        size = self._width // self._heads
        parts = tf.reshape(self.qkv(x), [batch, count, 3, self._heads, size])
        query, key, value = tf.unstack(tf.transpose(parts, [2, 0, 3, 1, 4]))
        scores = tf.matmul(query * tf.cast(size**-0.5, query.dtype), key, transpose_b=True)
        weights = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32)), value.dtype)
        mixed = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])
        return self.proj(tf.reshape(mixed, [batch, count, self._width]))


class Block(Layer):
    """Attention, then two linear maps for each token; each added, scaled by channel.

    Args: as for `Attention`.
    """

    def __init__(self, settings: Settings, name: str, width: int, heads: int):
        super().__init__(name)
        hidden = _MLP_RATIO * width
        self.norm1 = LayerNorm(settings, f"{name}/norm1", width, epsilon=_EPSILON)
        self.attention = Attention(settings, f"{name}/attn", width, heads)
        self.scale1 = Parameter(settings, f"{name}/ls1/gamma", [width], constant(1.0))
        self.norm2 = LayerNorm(settings, f"{name}/norm2", width, epsilon=_EPSILON)
        self.fc1 = Dense(settings, f"{name}/mlp/fc1", width, hidden)
        self.fc2 = Dense(settings, f"{name}/mlp/fc2", hidden, width)
        self.scale2 = Parameter(settings, f"{name}/ls2/gamma", [width], constant(1.0))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps float32 [N, T, width] to the same, in training too; the sums stay float32."""
        x += tf.cast(self.attention(self.norm1(x)), tf.float32) * self.scale1.value
        hidden = tf.nn.gelu(self.fc1(self.norm2(x)), approximate=False)
        return x + tf.cast(self.fc2(hidden), tf.float32) * self.scale2.value


class VisionTransformer(Backbone):
    """A vision transformer of DINOv2.

    Args:
      settings: seed, types; initial values are set here.
      variant: scope of the variables.
      shape: width, heads, blocks, registers.
    """

    facts = dataclasses.replace(STANDARDISED, kernel_name="kernel", bias_name="bias")
    patch_size = PATCH
    # In files of some collections it is missing: only training by masked patches uses it.
    torch_optional = ("mask_token",)

    def __init__(self, settings: Settings, variant: str, shape: Shape):
        super().__init__(variant)
        settings = settings.replace(kernel_init=truncated_normal(0.02))
        self.scope, self._width, self._registers = variant, shape.width, shape.registers
        self._type = tf.as_dtype(settings.compute_dtype)
        self._taken = {number: f"block{number}" for number in shape.taken}
        small, width = truncated_normal(0.02), shape.width

        def parameter(name, *sides, **how):
            return Parameter(settings, f"{variant}/{name}", [*sides, width], small, **how)

        self.cls_token = parameter("cls_token", 1, 1)
        self.pos_embed = parameter("pos_embed", 1, 1 + _GRID * _GRID)
        self.mask_token = parameter("mask_token", 1, trainable=False)
        self.register_tokens = None
        if shape.registers:
            self.register_tokens = parameter("register_tokens", 1, shape.registers)
        else:
            self.torch_foreign = ("register_tokens",)
        fan_in = uniform_fan_in(3 * PATCH * PATCH)
        self.patch_embed = Conv2D(
            settings,
            f"{variant}/patch_embed/proj",
            3,
            width,
            PATCH,
            stride=PATCH,
            use_bias=True,
            fixed_padding=False,
            init=fan_in,
            bias_init=fan_in,
            kernel_name="kernel",
            bias_name="bias",
        )
        self.blocks = [
            Block(settings, f"{variant}/blocks/{i}", width, shape.heads)
            for i in range(shape.taken[-1] + 1)
        ]
        self.norm = LayerNorm(settings, f"{variant}/norm", width, epsilon=_EPSILON)
        self.token_maps = tuple(self._taken.values())
        self.last = self.token_maps[-1]
        self.channels = dict.fromkeys(self.token_maps, width)
        self.hypercolumn = dict(zip((16, 15, 14, 13), reversed(self.token_maps)))

    def position_embedding(self, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
        """Returns the position embedding of a grid, float32 [1, 1 + height width, D], class first.

        Args:
          height, width: patches along both sides: ints, or int32 scalar tensors.
        """
        embedding = self.pos_embed.value
        if isinstance(height, int) and isinstance(width, int) and height == width == _GRID:
            return tf.convert_to_tensor(embedding)
        rows, columns = (
            position_matrix(*pair, antialias=self._registers > 0)
            for pair in ((height, width), (width, height))
        )
        grid = tf.reshape(embedding[:, 1:], [1, _GRID, _GRID, self._width])
        # In float64, because GPUs multiply float32 matrices with ten bits.
        grid = separable_linear(tf.cast(grid, tf.float64), rows, columns)
        grid = tf.reshape(tf.cast(grid, tf.float32), [1, height * width, self._width])
        return tf.concat([embedding[:, :1], grid], 1)

    def call(self, x: tf.Tensor, training: bool = False) -> EndPoints:
        """Maps a network input [N, 14 h, 14 w, 3] to end points [N, h, w, D] by name."""
        x = self.patch_embed(x)
        batch, height, width = sides(x, (0, 1, 2))
        patches = tf.reshape(tf.cast(x, tf.float32), [batch, height * width, self._width])
        one = [batch, 1, self._width]
        tokens = tf.concat([tf.broadcast_to(self.cls_token.value, one), patches], 1)
        tokens += self.position_embedding(height, width)
        if self.register_tokens is not None:
            several = [batch, self._registers, self._width]
            registers = tf.broadcast_to(self.register_tokens.value, several)
            tokens = tf.concat([tokens[:, :1], registers, tokens[:, 1:]], 1)
        ends = {}
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, training=training)
            if number in self._taken:
                kept = tf.cast(self.norm(tokens)[:, 1 + self._registers :], self._type)
                ends[self._taken[number]] = tf.reshape(kept, [batch, height, width, self._width])
        return ends

    def torch_names(self) -> dict[str, str]:
        """Returns the modules' names of the published files, by ours."""
        parts = ["cls_token", "pos_embed", "mask_token", "register_tokens", "patch_embed.proj"]
        parts += [f"blocks.{i}.{part}" for i in range(len(self.blocks)) for part in _BLOCK_PARTS]
        return {f"{self.scope}/{p.replace('.', '/')}": p for p in [*parts, "norm"]}
