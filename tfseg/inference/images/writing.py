"""The files of one image's prediction: class ids, colours, overlay, probabilities, run lengths.

| kind | file | content |
|---|---|---|
| index | `index/<name>.png` | class ids as `vis.py` writes them raw |
| color | `color/<name>.png` | the palette's colours, RGB |
| overlay | `overlay/<name>.jpg` | the colours over the image; background is left clear |
| probabilities | `probabilities/<name>.npz` | 'probabilities', float16 [H, W, C]; 'class_names' |
| coco | `coco/<name>.json` | run lengths by class, of which `coco.json` is made at the end |

All have the size of the image. Each file appears whole under its name.
"""

import io
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from tfseg.data.prediction_files import raw_ids
from tfseg.data.specs import DatasetSpec
from tfseg.inference.coloring import overlay
from tfseg.inference.files import jpeg, png, write
from tfseg.inference.predictor import Prediction

EXTENSIONS = {
    "index": ".png",
    "color": ".png",
    "overlay": ".jpg",
    "probabilities": ".npz",
    "coco": ".json",
}


def relative_path(kind: str, name: str) -> str:
    """Returns where a file lies below the output directory."""
    return f"{kind}/{name}{EXTENSIONS[kind]}"


class ImageWriter:
    """Writes the files of one image at a time; threads may share it.

    Args:
      folder: the output directory.
      kinds: of `EXTENSIONS`.
      spec: the classes.
      colors: of `coloring.colors_of`.
    """

    def __init__(self, folder: str, kinds: Sequence[str], spec: DatasetSpec, colors: np.ndarray):
        self._folder, self._kinds, self._spec, self._colors = folder, kinds, spec, colors

    def write(self, name: str, image: np.ndarray, found: Prediction) -> None:
        """Writes an image's files.

        Args:
          name: of `finding.output_names`.
          image: uint8 [H, W, 3].
          found: labels, integers [H, W]; and probabilities, floats [H, W, C], where they are kept.
        """
        labels, spec = found.labels, self._spec
        contents: dict[str, Callable[[], bytes]] = {
            "index": lambda: png(raw_ids(labels, spec)),
            "color": lambda: png(self._colors[labels]),
            "overlay": lambda: jpeg(overlay(image, labels, spec, self._colors)),
            "probabilities": lambda: _npz(found.probs, spec),
            "coco": lambda: json.dumps(run_lengths(labels, spec)).encode(),
        }
        for kind in self._kinds:
            write(os.path.join(self._folder, relative_path(kind, name)), contents[kind]())


def _npz(probs: np.ndarray, spec: DatasetSpec) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, probabilities=probs.astype(np.float16, copy=False), class_names=spec.class_names
    )
    return buffer.getvalue()


def run_lengths(labels: np.ndarray, spec: DatasetSpec) -> list[dict[str, Any]]:
    """Returns the regions of a mask as COCO's annotations have them, without ids.

    Args:
      labels: class ids [H, W].
      spec: the classes; background is no region.

    Returns:
      One for each class in the mask: 'category_id', which is the class id; 'segmentation' with
      'size' and compressed 'counts'; 'area', 'bbox' (x, y, width, height) in pixels; 'iscrowd'.
    """
    regions = []
    for class_id in classes_in(labels):
        if spec.has_background and class_id == 0:
            continue
        encoded = coco_mask.encode(np.asfortranarray(labels == class_id).view(np.uint8))
        regions.append(
            {
                "category_id": class_id,
                "segmentation": {
                    "size": list(labels.shape),
                    "counts": encoded["counts"].decode("ascii"),
                },
                "area": int(coco_mask.area(encoded)),
                "bbox": [int(x) for x in coco_mask.toBbox(encoded)],
                "iscrowd": 0,
            }
        )
    return regions


def classes_in(labels: np.ndarray) -> list[int]:
    """Returns the ids in a mask [H, W], ascending; counts by rows, in little memory."""
    found: set[int] = set()
    for start in range(0, len(labels), 256):
        found.update(np.flatnonzero(np.bincount(labels[start : start + 256].ravel())).tolist())
    return sorted(found)
