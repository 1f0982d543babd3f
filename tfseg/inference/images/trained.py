"""A trained network, and how plain images enter it."""

import dataclasses
import math
from typing import Any

from tfseg.data.image_input import ImageInput
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.settings.data import DataConfig
from tfseg.settings.prediction import ImagesConfig


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network with its weights, and what is known of its training.

    Attributes:
      model: network of `build_model`.
      spec: its classes.
      data_config: how its images were resized before they were augmented.
      median_sides: of its training images, the shorter and the longer, pixels; None: not known.
      prefix, step: of its checkpoint.
    """

    model: Any
    spec: DatasetSpec
    data_config: DataConfig
    median_sides: tuple[int, int] | None
    prefix: str
    step: int


def image_input_of(trained: Trained, config: ImagesConfig) -> ImageInput:
    """Returns how images enter the network.

    Raises:
      UserError: two settings resize them, or the size is not known.
    """
    area = None
    if config.scale == "auto":
        if trained.median_sides is None:
            raise UserError(
                "The run does not say how large its training images were.",
                where="--scale=auto",
                received=f"the config.json of {trained.prefix}",
                accepted="a run of this version or a newer one",
                fix="resize the images yourself, or leave out --scale",
            )
        area = "area", math.prod(trained.median_sides)
    return ImageInput(
        trained.model.mean_pixel,
        trained.model.valid_size,
        config=trained.data_config,
        max_side=config.max_side,
        resize_to=area,
    )
