"""What is written of all images together: the gallery, coco.json, the list of damaged images."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from tfseg import files, sharing
from tfseg.data.prediction_files import safe_path
from tfseg.data.specs import DatasetSpec
from tfseg.errors import naming_file
from tfseg.inference import gallery
from tfseg.inference.files import write
from tfseg.inference.images.finding import ImageFile
from tfseg.inference.images.manifest import Entry
from tfseg.inference.images.writing import relative_path

# What browsers show.
_SHOWN = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")
_COLUMNS = {"color": "prediction", "overlay": "overlay"}
_REGION = {
    "category_id": range(1 << 16),
    "segmentation": {"size": [int], "counts": str},
    "area": int,
    "bbox": [int],
    "iscrowd": int,
}


def has_page(kinds: Sequence[str]) -> bool:
    """Whether there is something to show."""
    return bool(set(kinds) & set(_COLUMNS))


def write_page(
    path: str,
    images: Sequence[ImageFile],
    entries: Mapping[str, Entry],
    *,
    kinds: Sequence[str],
    spec: DatasetSpec,
    colors: np.ndarray,
    prefix: str,
    facts: Mapping[str, str],
) -> None:
    """Writes the gallery of images that are predicted.

    Args:
      path: of the page, in the output directory.
      images: the files; those without an entry are left out.
      entries: by key.
      kinds: of files that were written; those that are pictures are shown.
      spec, colors: classes and their colours.
      prefix: of the checkpoint.
      facts: shown as they are.
    """
    folder = os.path.dirname(path)
    shown = []
    for image in images:
        if image.key not in entries:
            continue
        entry, pictures = entries[image.key], {}
        if os.path.splitext(image.path)[1].lower() in _SHOWN:
            pictures["image"] = os.path.relpath(image.path, folder)
        for kind in kinds:
            if kind in _COLUMNS:
                pictures[_COLUMNS[kind]] = relative_path(kind, entry.name)
        shown.append(gallery.Entry(safe_path(image.key), pictures, None, {}, entry.classes))
    text = gallery.page(
        shown,
        title=f"{gallery.run_name(prefix)}: {spec.name}, {len(shown)} images",
        class_names=spec.class_names,
        colors=colors,
        facts=facts,
        class_iou=None,
        ignore_label=spec.ignore_label,
        turn_images=True,
    )
    # Names of files need not be text.
    write(path, text.encode(errors="backslashreplace"))


def write_coco(
    path: str,
    folder: str,
    images: Sequence[ImageFile],
    entries: Mapping[str, Entry],
    spec: DatasetSpec,
) -> None:
    """Writes COCO's instances of images that are predicted, image by image.

    Args:
      path: of the file.
      folder: the output directory, with the run lengths of each image.
      images, entries, spec: see `write_page`.

    Raises:
      UserError: the run lengths of an image are damaged.
    """
    first = spec.first_image_class
    categories = [
        {"id": class_id, "name": name}
        for class_id, name in enumerate(spec.class_names)
        if class_id >= first
    ]
    done = [entries[image.key] for image in images if image.key in entries]
    described = [
        {"id": i, "file_name": safe_path(e.image), "height": e.height, "width": e.width}
        for i, e in enumerate(done, start=1)
    ]
    temporary = sharing.temporary_path(path)
    try:
        with naming_file(path), open(temporary, "w", encoding="utf-8") as file:
            file.write(f'{{"images": {json.dumps(described)},\n')
            file.write(f'"categories": {json.dumps(categories)},\n"annotations": [')
            number = 0
            for image_id, entry in enumerate(done, start=1):
                source = os.path.join(folder, relative_path("coco", entry.name))
                regions = files.read_json(source, [_REGION], what="A file of run lengths")
                for region in regions:
                    number += 1
                    file.write(",\n" if number > 1 else "\n")
                    file.write(json.dumps({"id": number, "image_id": image_id, **region}))
            file.write("]}\n")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def write_failed(path: str, failed: Mapping[str, str]) -> None:
    """Lists damaged images with what is wrong, one a line; removes the list where there is none.

    Args:
      path: of the list.
      failed: what is wrong, by key.
    """
    if failed:
        lines = [f"{safe_path(key)}\t{' '.join(why.split())}\n" for key, why in failed.items()]
        write(path, "".join(lines).encode(errors="backslashreplace"))
        return
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
