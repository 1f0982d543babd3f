"""The images on which an exported file is compared, or by which it is quantised."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from tfseg.data import pixels
from tfseg.data.record_reader import RecordReader
from tfseg.data.specs import DatasetSpec
from tfseg.data.split_index import load_index
from tfseg.inference.pictures import decode_image, decode_label
from tfseg.inference.zero_label import evaluated_label

Size = tuple[int, int]
# Of made-up images: not the size of a crop, to either side of one, and smaller than a stride.
_MADE_UP_SIZES = ((97, 161), (120, 120), (65, 65), (33, 47), (9, 14))


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as an exported file takes it.

    Attributes:
      image: uint8 RGB [H, W, 3].
      shown: height and width of the part at its upper left that is not padding.
      label: class ids and the ignore label, int64 [*shown]; None: there is no mask.
    """

    image: np.ndarray
    shown: Size
    label: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class RecordPictures:
    """Some images of a split, evenly over it, read anew each time.

    Attributes:
      dataset_dir, split: the records.
      spec: the data set.
      count: how many; 0: all.
      size: height and width of every picture: larger images are scaled down to fit in, smaller
        ones padded. None: images keep their sizes.
      filling: RGB 0..255 of the padding.

    Raises:
      UserError: the split is not there; on iterating, a record is damaged.
    """

    dataset_dir: str
    split: str
    spec: DatasetSpec
    count: int = 0
    size: Size | None = None
    filling: tuple[int, ...] = (127, 127, 127)

    def __post_init__(self):
        index = load_index(self.dataset_dir, self.split, self.spec)
        count = min(self.count or index.size, index.size)
        numbers = np.unique(np.linspace(0, index.size - 1, count).round().astype(int))
        object.__setattr__(self, "_index", index)
        object.__setattr__(self, "_numbers", numbers)

    @property
    def have_masks(self) -> bool:
        """Whether each of them has one."""
        return bool(self._index.has_mask[self._numbers].all())

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Picture]:
        with RecordReader(self._index, self.dataset_dir) as reader:
            for i in self._numbers.tolist():
                example, location = reader.read(i), reader.location(i)
                image, label = decode_image(example.image, location), None
                if example.label is not None:
                    image_id = str(self._index.ids[i])
                    label = evaluated_label(
                        decode_label(example.label, image_id, location), self.spec
                    )
                yield self._framed(image, label)

    def _framed(self, image: np.ndarray, label: np.ndarray | None) -> Picture:
        if self.size is None:
            return Picture(image, image.shape[:2], label)
        scale = min(1.0, *(side / of for side, of in zip(self.size, image.shape)))
        shown = tuple(max(1, int(side * scale)) for side in image.shape[:2])
        if scale < 1.0:
            image = pixels.resize_image(image, shown)
            label = None if label is None else pixels.resize_label(label.astype(np.uint8), shown)
        return Picture(pixels.window(image, (0, 0), self.size, filling=self.filling), shown, label)


@dataclasses.dataclass(frozen=True)
class MadeUpPictures:
    """Images of smooth colours and noise, where there are no records.

    Attributes:
      size: height and width of every picture; None: several sizes.
    """

    size: Size | None = None
    have_masks = False

    def __len__(self) -> int:
        return len(_MADE_UP_SIZES)

    def __iter__(self) -> Iterator[Picture]:
        rng = np.random.default_rng(0)
        for made_up in _MADE_UP_SIZES:
            height, width = self.size or made_up
            y, x = np.linspace(0, 6, height)[:, None, None], np.linspace(0, 6, width)[None, :, None]
            phase = rng.uniform(0, 6, [4, 3])
            waves = np.sin(y + phase[0]) * np.cos(x + phase[1]) + np.sin(3 * (x - y) + phase[2])
            noise = rng.normal(0, 0.2, [height, width, 3])
            image = np.clip(127 + 60 * (waves + noise), 0, 255).astype(np.uint8)
            yield Picture(image, (height, width))
