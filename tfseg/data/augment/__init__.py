"""The augmentations of training images, one file each.

A file has `make_views(config, context)`, described at `make_views` here. It may have
`MAKES_STRONG_VIEWS = True`, where it can make any number of them beside the weak one, and
`max_side(config, light=...)`, the longest side in pixels that it takes.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

import tensorflow as tf

from tfseg.data.augment.base import Context
from tfseg.settings.augmentations import AUGMENTATIONS
from tfseg.settings.data import DataConfig


def _module(config: DataConfig) -> ModuleType:
    # On demand, because only some need OpenCV and its time to load.
    return AUGMENTATIONS[config.augmentation].load()


def makes_strong_views(name: str) -> bool:
    """Returns whether the augmentation of that name makes strong views beside the weak one."""
    return getattr(AUGMENTATIONS[name].load(), "MAKES_STRONG_VIEWS", False)


def max_side(config: DataConfig, *, light: bool) -> int | None:
    """Returns the longest side in pixels that --augmentation takes; None: any."""
    limit = getattr(_module(config), "max_side", None)
    return limit and limit(config, light=light)


def make_views(
    config: DataConfig,
    *,
    strong_views: int,
    light: bool,
    mean_pixel: Sequence[float],
    ignore_label: int,
    keeping_errors: Callable[[Callable], Callable],
    largest_px: int | None = None,
) -> Callable[..., dict[str, tf.Tensor]]:
    """Returns the function (image, label, size, seed) -> views of --augmentation.

    Args:
      config: the augmentation and its settings.
      strong_views, light, mean_pixel, ignore_label, keeping_errors, largest_px: see
        `base.Context`.

    Returns:
      A function of image uint8 or float32 [H, W, 3], label uint8 [H, W] or None, size int32 [2],
      and seed int64 [2]. It gives 'image' uint8 or float32 RGB 0..255 [h, w, 3], 'valid' bool
      [h, w], 'label' uint8 [h, w] where there is one, and the strong views that are wanted as
      'image', by `stream.strong_keys`.

    Raises:
      UserError: settings cannot be meant.
    """
    context = Context(
        strong_views, light, tuple(mean_pixel), ignore_label, keeping_errors, largest_px
    )
    return _module(config).make_views(config, context)
