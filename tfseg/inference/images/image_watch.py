"""What is told of plain images: another scale than in training, dark, transparent, in frames."""

import contextlib
import math

import numpy as np
from PIL import Image

from tfseg.data.image_files import DARK, is_first_of_several, is_see_through
from tfseg.data.image_input import ImageInput
from tfseg.data.reading import size_in_range
from tfseg.inference.images.finding import ImageFile
from tfseg.inference.images.trained import Trained

# Sides that differ by more are another scale to a network.
_FAR = 2.0


class ImageWatch:
    """Tells when images are of another scale, dark, transparent, or one of several."""

    def __init__(self, trained: Trained, image_input: ImageInput):
        self._input, self._sides = image_input, trained.median_sides
        if self._sides is not None:
            seen = size_in_range(*self._sides, trained.data_config)
            self._side = math.sqrt(math.prod(seen))
        self._looked = self._far = self._dark = self._several = self._see_through = 0

    def look(self, image: ImageFile, pixels: np.ndarray) -> None:
        """Looks at an image uint8 [H, W, 3], and tells of the first of each kind."""
        several = see_through = False
        # Both may fail where the pixels can be read.
        with contextlib.suppress(Exception), Image.open(image.path) as file:
            several = is_first_of_several(file)
            see_through = is_see_through(file)
        if several:
            self._several += 1
            if self._several == 1:
                print(
                    f"warning: {image.key} holds several pages or frames. The first is "
                    "predicted. Save the others as files of their own to predict them too.",
                    flush=True,
                )
        if see_through:
            self._see_through += 1
            if self._see_through == 1:
                print(
                    f"warning: {image.key} has transparent pixels. The network sees the colours "
                    "under them. Paste it on the background that is meant, and save it without "
                    "transparency.",
                    flush=True,
                )
        if pixels.max() <= DARK:
            self._dark += 1
            if self._dark == 1:
                print(
                    f"warning: {image.key} is dark, no value above {DARK} of 255. Its values may "
                    "have another range, such as 12 or 14 bits in 16, or 0 to 1 in 8. Scale them "
                    "as those of the training images were.",
                    flush=True,
                )
        if self._sides is None:
            return
        height, width = self._input.seen_size(*pixels.shape[:2])
        ratio = math.sqrt(height * width) / self._side
        self._looked += 1
        if 1 / _FAR <= ratio <= _FAR:
            return
        self._far += 1
        if self._far == 1:
            times = f"{ratio:.1f} times as large" if ratio > 1 else f"1/{1 / ratio:.1f} as large"
            print(
                f"note: {image.key} is seen at {height}x{width} pixels; the training images had "
                f"{self._sides[0]}x{self._sides[1]} (medians of their sides). What it shows is "
                f"{times} as the network has learned it. --scale=auto resizes images to that "
                "scale, which is quicker for large ones too.",
                flush=True,
            )

    def tell(self) -> None:
        """Says how many images were of each kind."""
        if self._several > 1:
            print(f"warning: {self._several} images hold several pages or frames", flush=True)
        if self._see_through > 1:
            print(f"warning: {self._see_through} images have transparent pixels", flush=True)
        if self._dark > 1:
            print(f"warning: {self._dark} images are dark", flush=True)
        if self._far > 1:
            print(
                f"note: {self._far} of {self._looked} images are more than {_FAR:g} times larger "
                "or smaller than the training images",
                flush=True,
            )
