"""Large images in overlapping tiles, whose probabilities are blended and summed band by band.

Near the edges of a tile the network sees less around a pixel, so a tile's weight falls off linearly
over the overlap. The sum of all tiles is kept for one row of tiles at a time: memory is bounded by
the tile's height times the width of the image.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfseg.data.image_input import ImageInput
from tfseg.inference.replicas import Replicas


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How an image is cut.

    Attributes:
      size: height and width of a tile, pixels.
      overlap: pixels that neighbours share, less than `size`; the last tile of a row or column
        ends at the image's edge and may share more.
    """

    size: int
    overlap: int

    def starts(self, side: int) -> list[int]:
        """Returns where the tiles along a side of the image begin."""
        if side <= self.size:
            return [0]
        return [*range(0, side - self.size, self.size - self.overlap), side - self.size]

    def window(self, side: int) -> np.ndarray:
        """Returns the weights along one side of a tile, float32 [side], all above 0."""
        from_edge = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
        return np.minimum(from_edge / max(self.overlap, 0.5), 1.0).astype(np.float32)


def blended(
    image: np.ndarray,
    tiling: Tiling,
    replicas: Replicas,
    image_input: ImageInput,
    *,
    present: np.ndarray | None = None,
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Predicts an image in tiles.

    Args:
      image: as the network is to see it, RGB 0..255 [H, W, 3].
      tiling: its tiles.
      replicas: of a predictor of 'probs'; they share the tiles of a row.
      image_input: pads tiles, each to the next size that the network takes.
      present: see `Replicas`.

    Yields:
      From top to bottom: the first row of a band, and for each of the predictor's decisions the
      blended probabilities of the band, float32 [rows, W, C]. The arrays are valid until the next
      band is asked for.
    """
    height, width = image.shape[:2]
    tile_height, tile_width = min(tiling.size, height), min(tiling.size, width)
    size = image_input.valid_size(tile_height, tile_width)
    tops, lefts = tiling.starts(height), tiling.starts(width)
    down, across = tiling.window(tile_height), tiling.window(tile_width)
    weight = (down[:, None] * across)[..., None]
    total_down, total_across = _total(down, tops, height), _total(across, lefts, width)
    sums: list[np.ndarray] = []
    for top, following in zip(tops, [*tops[1:], height]):
        for first in range(0, len(lefts), replicas.count):
            group = lefts[first : first + replicas.count]
            parts = [image[top : top + tile_height, left : left + tile_width] for left in group]
            tiles = [image_input.padded(part, size) for part in parts]
            for left, found in zip(group, replicas(tiles, present)):
                probs = tf.nest.flatten(found.probs)
                if not sums:
                    shape = (tile_height, width, probs[0].shape[-1])
                    sums = [np.zeros(shape, np.float32) for _ in probs]
                for total, part in zip(sums, probs):
                    total[:, left : left + tile_width] += part[:tile_height, :tile_width] * weight
        rows = following - top
        for total in sums:
            total[:rows] /= (total_down[top:following, None] * total_across)[..., None]
        yield top, [total[:rows] for total in sums]
        for total in sums:
            # Row by row: an assignment between overlapping parts would copy them first.
            for row in range(tile_height - rows):
                total[row] = total[row + rows]
            total[tile_height - rows :] = 0.0


def tiled_labels(
    image: np.ndarray,
    tiling: Tiling,
    replicas: Replicas,
    image_input: ImageInput,
    *,
    present: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Returns the labels of an image for each of the predictor's decisions; see `blended`.

    Returns:
      Class ids [H, W], uint8, or int32 with more than 256 classes.
    """
    labels: list[np.ndarray] = []
    for top, bands in blended(image, tiling, replicas, image_input, present=present):
        if not labels:
            dtype = np.uint8 if bands[0].shape[-1] <= 256 else np.int32
            labels = [np.empty(image.shape[:2], dtype) for _ in bands]
        for result, band in zip(labels, bands):
            result[top : top + len(band)] = band.argmax(-1)
    return labels


def _total(window: np.ndarray, starts: Sequence[int], side: int) -> np.ndarray:
    """Returns the sum of a side's windows at every pixel, float32 [side]."""
    total = np.zeros(side, np.float32)
    for start in starts:
        total[start : start + len(window)] += window
    return total
