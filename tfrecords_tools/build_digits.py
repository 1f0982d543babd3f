"""Makes a small data set to try everything on: scenes of real handwritten digits, no download.

python tfrecords_tools/build_digits.py --output_dir=records

Several digits of random size, colour, tilt and place stand on cluttered backgrounds. Classes:
background and the digits 0 to --num_digits - 1. Every record has a mask and image-level labels:

* `train`: few scenes, the labelled ones;
* `train_aug`: many, those of `train` first; to methods that learn without masks the rest is
  unlabelled;
* `val`: scenes of other digits: no sample is used on both sides.

`class_embeddings.npz` beside the records describes how each digit is drawn (`digit_attributes`): in
zero-label runs it stands in for word vectors.

The digits are the 1,797 samples of 8x8 pixels that scikit-learn carries (UCI, Optical Recognition
of Handwritten Digits). The same --seed gives the same bytes.
"""

import dataclasses
import io
import os
import time

import numpy as np
from absl import flags
from PIL import Image, ImageDraw, ImageFilter

from tfrecords_tools import program
from tfrecords_tools.encoder import make_record
from tfrecords_tools.masks import classes_in
from tfseg.data import class_embeddings, writing
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError

FLAGS = flags.FLAGS


def make_spec(num_digits: int) -> DatasetSpec:
    """Returns the description of scenes that show the digits 0 to num_digits - 1."""
    return DatasetSpec(name="digits", class_names=("background", *map(str, range(num_digits))))


CLASS_EMBEDDINGS_FILE = "class_embeddings.npz"
# By digit: the lit segments of a display with seven (a at the top, then clockwise, g in the
# middle), and the numbers of holes, straight strokes, arcs, and openings to the left and right.
_SEGMENTS = "abcdef bc abdeg abcdg bcfg acdfg acdefg abc abcdefg abcdfg".split()
_COUNTS = {
    "holes": (1, 0, 0, 0, 0, 0, 1, 0, 2, 1),
    "straight strokes": (0, 1, 1, 0, 3, 2, 0, 2, 0, 1),
    "arcs": (2, 0, 1, 2, 0, 1, 2, 0, 4, 1),
    "open to the left": (0, 0, 1, 2, 0, 1, 0, 1, 0, 1),
    "open to the right": (0, 0, 1, 0, 0, 1, 1, 0, 0, 0),
}


def digit_attributes(num_digits: int) -> np.ndarray:
    """Returns what classes look like, in numbers: float32 [1 + num_digits, 13] within 0 and 1.

    Columns are seven segments, the counts of `_COUNTS` in parts of their largest, and whether it is
    the background, all of whose other numbers are 0.
    """
    segments = np.array([[s in lit for s in "abcdefg"] for lit in _SEGMENTS], np.float32)
    counts = np.array(list(_COUNTS.values()), np.float32).T
    digits = np.concatenate([segments, counts / counts.max(0)], axis=1)[:num_digits]
    result = np.zeros((1 + num_digits, digits.shape[1] + 1), np.float32)
    result[0, -1] = 1.0
    result[1:, :-1] = digits
    return result


# Share of the digit samples kept for val.
_VAL_SHARE = 0.25
_TRAIN, _VAL = 0, 1
# Digits are anti-aliased; a pixel belongs to one where it covers at least this much.
_MASK_COVER = 0.45
_SMALLEST_SCENE_PX = 33
# Backgrounds are darker, ink is brighter, like chalk on a board: a network that starts from scratch
# learns digits of any colour on any ground only in many thousand steps.
_DARK, _BRIGHT = 130, 160


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_integer("image_size", 97, "Side of the square scenes, pixels.")
    flags.DEFINE_integer("num_train", 96, "Scenes of split train.")
    flags.DEFINE_integer(
        "num_train_aug", 512, "Scenes of split train_aug, those of train included."
    )
    flags.DEFINE_integer("num_val", 128, "Scenes of split val.")
    flags.DEFINE_integer("num_digits", 10, "Digits that occur, from 0 on: 1 to 10.")
    flags.DEFINE_integer("seed", 0, "Seed of the scenes.")
    program.define_output_flags(num_shards=2)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Which scene to compose: pool of digit samples (0 train, 1 val) and number."""

    pool: int
    number: int

    @property
    def id(self) -> str:
        return f"{('train', 'val')[self.pool]}_{self.number:05d}"


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Returns smooth noise on three scales in two colours, [side, side, 3] float in 0..255."""
    field = np.zeros((side, side))
    for cells, weight in ((3, 0.5), (9, 0.3), (24, 0.2)):
        noise = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
        field += weight * np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC))
    colors = rng.integers(0, _DARK, (2, 1, 1, 3))
    field = np.clip(field, 0, 1)[..., None]
    return colors[0] * field + colors[1] * (1 - field)


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(int(x) for x in rng.integers(0, _DARK, 3))


def _clutter(rng: np.random.Generator, side: int) -> Image.Image:
    """Returns a background: texture with shapes and strokes that are no digits."""
    image = Image.fromarray(_texture(rng, side).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 3)):
        x, y = rng.integers(-side // 8, side, 2)
        w, h = rng.integers(side // 12, side // 3, 2)
        box = (int(x), int(y), int(x + w), int(y + h))
        shape = rng.choice(["rectangle", "ellipse", "polygon"])
        if shape == "polygon":
            points = [(int(x + a), int(y + b)) for a, b in rng.integers(0, side // 3, (3, 2))]
            draw.polygon(points, fill=_color(rng))
        else:
            getattr(draw, shape)(box, fill=_color(rng))
    for _ in range(rng.integers(0, 3)):
        start = rng.integers(0, side, 2)
        end = start + rng.integers(-side // 4, side // 4 + 1, 2)
        width = int(rng.integers(1, max(2, side // 24) + 1))
        draw.line([*map(int, start), *map(int, end)], fill=_color(rng), width=width)
    return image


def _digit_cover(rng: np.random.Generator, sample: np.ndarray, size: int) -> np.ndarray:
    """Returns how much of each pixel a tilted, resized digit covers, [h, w] float in 0..1.

    Args:
      rng: of the scene.
      sample: [8, 8] uint8, 0 to 16.
      size: height of the digit, pixels.
    """
    padded = np.pad(sample.astype(np.float32) / 16.0, 2)
    # 8 of 12 rows are the digit.
    side = size * 12 // 8
    width = max(8, int(side * rng.uniform(0.8, 1.2)))
    image = Image.fromarray(padded).resize((width, side), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC)
    # Interpolated strokes are soft; a steeper flank makes them ink.
    cover = np.clip((np.asarray(image) - 0.3) * 3.0, 0, 1)
    rows, columns = np.flatnonzero(cover.max(1) > 0.05), np.flatnonzero(cover.max(0) > 0.05)
    return cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _ink(rng: np.random.Generator) -> np.ndarray:
    """Returns a bright colour, [3] float."""
    return rng.integers(_BRIGHT, 256, 3).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Composer:
    """Composes scenes; sent to the worker processes.

    Attributes:
      samples: per pool, [n, 8, 8] uint8 digits of 0 to 16.
      targets: per pool, [n] the digit written.
      image_size: side of a scene, pixels.
      num_digits: digits 0 to num_digits - 1 are drawn.
      seed: of all scenes.
    """

    samples: tuple[np.ndarray, np.ndarray]
    targets: tuple[np.ndarray, np.ndarray]
    image_size: int
    num_digits: int
    seed: int

    def compose(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """Returns ([side, side, 3] uint8 RGB, [side, side] uint8 class ids)."""
        rng = np.random.default_rng([self.seed, scene.pool, scene.number])
        side = self.image_size
        canvas = np.asarray(_clutter(rng, side)).astype(np.float64)
        label = np.zeros((side, side), np.uint8)
        taken = np.zeros((side, side), bool)
        # The first digit takes turns, so that few scenes hold every class.
        digits = [
            scene.number % self.num_digits,
            *rng.integers(0, self.num_digits, rng.integers(1, 3)),
        ]
        for digit in digits:
            choice = rng.choice(np.flatnonzero(self.targets[scene.pool] == digit))
            size = int(side * rng.uniform(0.45, 0.7))
            cover = _digit_cover(rng, self.samples[scene.pool][choice], size)
            place = self._free_place(rng, cover.shape, taken)
            if place is None:
                continue
            top, left = place
            window = np.s_[top : top + cover.shape[0], left : left + cover.shape[1]]
            ink = _ink(rng)
            canvas[window] += cover[..., None] * (ink - canvas[window])
            label[window][cover >= _MASK_COVER] = 1 + digit
            taken[window] = True
        canvas += rng.normal(0, rng.uniform(2, 10), canvas.shape)
        image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
        if rng.random() < 0.3:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
        return np.asarray(image), label

    def _free_place(
        self, rng: np.random.Generator, shape: tuple[int, int], taken: np.ndarray
    ) -> tuple[int, int] | None:
        """Returns a corner where a digit hides little of earlier ones; None if none was found."""
        for _ in range(20):
            top = int(rng.integers(0, max(1, self.image_size - shape[0] + 1)))
            left = int(rng.integers(0, max(1, self.image_size - shape[1] + 1)))
            window = taken[top : top + shape[0], left : left + shape[1]]
            if window.shape == shape and window.mean() < 0.08:
                return top, left
        return None

    def __call__(self, scene: Scene) -> writing.Encoded:
        spec = make_spec(self.num_digits)
        image, label = self.compose(scene)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=92)
        return make_record(
            scene.id,
            buffer.getvalue(),
            label.shape,
            label,
            image_labels=classes_in(label, spec),
            spec=spec,
        )


def make_composer(*, image_size: int, seed: int, num_digits: int = 10) -> Composer:
    """Divides scikit-learn's digits into a pool for training and one for val."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    samples, targets = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    order = np.random.default_rng([seed, 2]).permutation(len(samples))
    num_val = int(len(samples) * _VAL_SHARE)
    pools = (order[num_val:], order[:num_val])
    return Composer(
        samples=tuple(samples[p] for p in pools),
        targets=tuple(targets[p] for p in pools),
        image_size=image_size,
        num_digits=num_digits,
        seed=seed,
    )


def build(
    output_dir: str,
    *,
    image_size: int = 97,
    num_train: int = 96,
    num_train_aug: int = 512,
    num_val: int = 128,
    num_digits: int = 10,
    seed: int = 0,
    num_shards: int = 2,
    num_workers: int = 1,
) -> list[writing.SplitReport]:
    """Composes and writes the three splits, and the attributes of the digits.

    Raises:
      UserError: a size that makes no data set.
    """
    if image_size < _SMALLEST_SCENE_PX:
        raise UserError(
            f"--image_size must be at least {_SMALLEST_SCENE_PX}.",
            where="--image_size",
            received=image_size,
        )
    if not 1 <= num_digits <= 10:
        raise UserError(
            "There are ten digits.", where="--num_digits", received=num_digits, accepted="1 to 10"
        )
    if not (0 < num_train <= num_train_aug and num_val > 0 and seed >= 0):
        raise UserError(
            "The numbers of scenes or the seed make no data set.",
            received=f"num_train {num_train}, num_train_aug {num_train_aug}, num_val {num_val}, "
            f"seed {seed}",
            accepted="0 < num_train <= num_train_aug, num_val > 0, seed >= 0",
        )
    scenes = {
        "train": [Scene(_TRAIN, k) for k in range(num_train)],
        "train_aug": [Scene(_TRAIN, k) for k in range(num_train_aug)],
        "val": [Scene(_VAL, k) for k in range(num_val)],
    }
    spec = make_spec(num_digits)
    reports = writing.write_splits(
        output_dir,
        spec,
        scenes,
        make_composer(image_size=image_size, seed=seed, num_digits=num_digits),
        num_shards=num_shards,
        num_workers=num_workers,
    )
    path = os.path.join(output_dir, CLASS_EMBEDDINGS_FILE)
    class_embeddings.save(path, spec.class_names, digit_attributes(num_digits))
    return reports


def main(argv: list[str]) -> None:
    started = time.monotonic()
    program.require("output_dir")
    reports = build(
        FLAGS.output_dir,
        image_size=FLAGS.image_size,
        num_train=FLAGS.num_train,
        num_train_aug=FLAGS.num_train_aug,
        num_val=FLAGS.num_val,
        num_digits=FLAGS.num_digits,
        seed=FLAGS.seed,
        num_shards=FLAGS.num_shards,
        num_workers=FLAGS.num_workers,
    )
    program.finish(reports, make_spec(FLAGS.num_digits), FLAGS.output_dir, started)


if __name__ == "__main__":
    define_flags()
    program.run(main)
