"""Files of predictions: their names, and the ids in them.

`vis.py --also_save_raw_predictions` writes `raw_segmentation_results/<name>.png`;
`tfrecords_tools/build_pseudo_labels.py` reads such a folder.
"""

from collections.abc import Sequence

import numpy as np

from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError

RAW_FOLDER = "raw_segmentation_results"

# File systems allow 255 bytes; the rest is for the extension and the temporary name.
_MAX_NAME_BYTES = 200


def raw_ids(prediction: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Returns the ids that are written: class ids, or evaluation ids where the data set has them.

    Args:
      prediction: class ids [H, W].
      spec: the data set.

    Returns:
      uint8 [H, W]; uint16 where 8 bits are too few for the data set.
    """
    table = np.asarray(spec.eval_ids or range(spec.num_classes))
    return table.astype(np.uint8 if table.max() < 256 else np.uint16)[prediction]


def class_ids(raw: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Undoes `raw_ids`.

    Args:
      raw: integers [H, W], as they were written; the ignore label stays.
      spec: the data set.

    Returns:
      int64 [H, W]: class ids and the ignore label; -1 where the id is neither.
    """
    raw = np.asarray(raw).astype(np.int64)
    values = spec.eval_ids or range(spec.num_classes)
    table = np.full(max(*values, spec.ignore_label, raw.max(initial=0)) + 1, -1)
    table[spec.ignore_label] = spec.ignore_label
    table[list(values)] = np.arange(spec.num_classes)
    return table[raw]


def output_names(ids: Sequence[str]) -> list[str]:
    """Returns the name, without extension, under which each image's pictures are written.

    Args:
      ids: `image/filename` of each image of a split.

    Returns:
      The last component of each id; where two would be the same, ids with all their components.
      None is absolute or contains '..'.

    Raises:
      UserError: two images have the same id, or a name is too long for a file.
    """
    paths = [safe_path(str(image_id)) for image_id in ids]
    names = [path.rsplit("/", 1)[-1] for path in paths]
    # On some file systems A.png and a.png are one file.
    if len({name.casefold() for name in names}) < len(names):
        names = paths
    first: dict[str, str] = {}
    for name, image_id in zip(names, ids):
        other = first.get(name.casefold())
        if other is not None:
            raise UserError(
                "Two images of the split would be written under one name.",
                where=f"images {other} and {image_id}",
                fix="make the split again with ids that differ (tfrecords_tools/check.py)",
            )
        first[name.casefold()] = image_id
        if max(len(part.encode()) for part in name.split("/")) > _MAX_NAME_BYTES:
            raise UserError(
                "An id is too long for a file name.",
                received=image_id,
                accepted=f"at most {_MAX_NAME_BYTES} bytes between two slashes",
            )
    return names


def safe_path(image_id: str) -> str:
    """Returns an id as a relative path that stays below its folder."""
    parts = []
    for part in image_id.replace("\\", "/").split("/"):
        part = "".join(c if c.isprintable() else "_" for c in part)
        if part == "..":
            part = "__"
        if part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or "_"
