"""Makes the picture of the README from the output of the demo.

    tfseg demo --steps=200
    python experiments/picture_strip.py

On the left the masks that the networks learned from; then the first scenes of the validation split,
each with its true mask and the predictions of the networks. No scene is chosen.
"""

import argparse
import io
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfseg.data.record_reader import RecordReader
from tfseg.data.specs import load_spec
from tfseg.data.split_index import load_index
from tfseg.inference.coloring import colors_of

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Columns: title, run of the demo, folder in its pictures.
_COLUMNS = (
    ("image", "digits", "images"),
    ("true mask", "digits", "truth"),
    ("supervised, 24 masks", "digits", "segmentation_results"),
    ("PseudoSeg, + 488 images", "digits_pseudoseg", "segmentation_results"),
)
# Sizes in pixels.
_SIDE, _GAP, _TITLE, _FONT = 176, 8, 24, 14
# Columns of the masks on the left.
_ACROSS = 4


def masks_of(records: pathlib.Path, split: str) -> list[np.ndarray]:
    """Returns the masks of a split in colour, uint8 [H, W, 3] each."""
    spec = load_spec(str(records), "")
    colors = colors_of(spec)
    index = load_index(str(records), split, spec)
    reader = RecordReader(index, str(records))
    labels = [reader.read(i).label for i in range(len(index.ids))]
    return [colors[np.asarray(Image.open(io.BytesIO(label)))] for label in labels]


def mosaic(pictures: list[np.ndarray], height: int) -> Image.Image:
    """Puts pictures into `_ACROSS` columns of this height."""
    down = -(-len(pictures) // _ACROSS)
    side = (height - (down - 1) * 2) // down
    canvas = Image.new("RGB", (_ACROSS * (side + 2) - 2, height), "white")
    for k, picture in enumerate(pictures):
        place = (k % _ACROSS * (side + 2), k // _ACROSS * (side + 2))
        canvas.paste(Image.fromarray(picture).resize((side, side)), place)
    return canvas


def strip(demo: pathlib.Path, rows: int) -> Image.Image:
    """Returns the picture.

    Args:
      demo: output folder of the demo.
      rows: scenes that are shown.
    """
    names = sorted(path.stem for path in (demo / "digits" / "vis" / "truth").iterdir())[:rows]
    height = rows * (_SIDE + _GAP) - _GAP
    left = mosaic(masks_of(demo / "records", "train"), height)
    start = left.width + 3 * _GAP
    size = (start + len(_COLUMNS) * (_SIDE + _GAP) - _GAP, _TITLE + height)
    canvas = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT)
    draw.text((0, 2), "24 masks to learn from", "black", font)
    canvas.paste(left, (0, _TITLE))
    for column, (title, run, folder) in enumerate(_COLUMNS):
        x = start + column * (_SIDE + _GAP)
        draw.text((x, 2), title, "black", font)
        for row, name in enumerate(names):
            (path,) = (demo / run / "vis" / folder).glob(f"{name}.*")
            picture = Image.open(path).convert("RGB")
            picture = picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            canvas.paste(picture, (x, _TITLE + row * (_SIDE + _GAP)))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo_output", type=pathlib.Path, default=ROOT / "demo_output")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "digits.png")
    parser.add_argument("--rows", type=int, default=3, help="scenes that are shown")
    options = parser.parse_args()
    picture = strip(options.demo_output, options.rows)
    # 256 colours are plenty for it and a third of the bytes.
    picture.quantize(256, dither=Image.Dither.NONE).save(options.output, optimize=True)
    print(f"{options.output}: {picture.width} x {picture.height} pixels")


if __name__ == "__main__":
    main()
