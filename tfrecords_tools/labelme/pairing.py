"""Which image belongs to which file of labelme, and which images have none."""

import dataclasses
import filecmp
import os
import posixpath
from collections.abc import Iterator

from tfrecords_tools.file_finder import FileFinder, composed, ids_below, stem_of
from tfrecords_tools.labelme import annotation as annotations
from tfrecords_tools.labelme.annotation import Annotation, EmbeddedImage
from tfseg.data.parallel import parallel_map
from tfseg.errors import UserError

_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Annotated:
    """An image: its path or the image inside its file, and its annotation if it has one."""

    image: str | EmbeddedImage
    annotation: Annotation | None


def read_folder(images_dir: str, annotations_dir: str, *, num_workers: int) -> dict[str, Annotated]:
    """Reads all files of labelme below a folder and finds their images.

    Args:
      images_dir: folder of images.
      annotations_dir: folder of the files; may be that of the images.
      num_workers: processes.

    Returns:
      By id, sorted, all images below the folder and those that are embedded. An id is the path of
      the image below its folder, or of the file below its, without extension.

    Raises:
      UserError: no files, a malformed one, or one whose image is nowhere.
    """
    files, images = FileFinder(annotations_dir, [".json"]), FileFinder(images_dir)
    names = ids_below(files, what="files of labelme")
    read = parallel_map(
        annotations.read, [files.find(name) for name in names], num_workers=num_workers
    )
    found: dict[str, Annotated] = {}
    elsewhere = []
    for name, annotation in zip(names, read):
        image_id, image = _image_of(name, annotation, images)
        if (
            posixpath.basename(image_id) != posixpath.basename(name)
            and images.find(name) is not None
        ):
            elsewhere.append(f"{name}.json names {posixpath.basename(str(image))}")
        if image_id in found:
            raise UserError(
                "Two files of labelme name one image.",
                where=f"{found[image_id].annotation.path}, {annotation.path}",
                received=str(image),
                accepted="one file for each image",
            )
        found[image_id] = Annotated(image, annotation)
    if elsewhere:
        print(
            f"warning: {len(elsewhere)} files of labelme name another image than the one of their "
            f"own name: {', '.join(elsewhere[:_NAMED])}. The named image (imagePath) was taken. "
            "Where images were renamed, correct imagePath",
            flush=True,
        )
    taken = {os.path.realpath(a.image) for a in found.values() if isinstance(a.image, str)}
    for i in _ids_of_images(images):
        path = images.find(i)
        if i not in found:
            found[i] = Annotated(path, None)
        elif os.path.realpath(path) not in taken:
            _check_same_image(found[i], path)
    return dict(sorted(found.items()))


def _check_same_image(annotated: Annotated, path: str) -> None:
    """Refuses an image of the name of another one that lies beside its annotation.

    Raises:
      UserError: the two differ.
    """
    beside = annotated.image
    if isinstance(beside, str) and not filecmp.cmp(beside, path, shallow=False):
        raise UserError(
            "Two different images have one name.",
            where=annotated.annotation.path,
            received=f"{beside}, {path}",
            accepted="one image for each annotation",
            fix="remove one of them, or give --images_dir the folder of the right ones",
        )


def _ids_of_images(images: FileFinder) -> list[str]:
    """Returns the ids of all images below a folder; there may be none where all are embedded."""
    try:
        return ids_below(images)
    except UserError:
        return []


def _image_of(
    name: str, annotation: Annotation, images: FileFinder
) -> tuple[str, str | EmbeddedImage]:
    """Returns the id and the image of a file.

    Args:
      name: path of the file below its folder, without extension.
      annotation: its content.
      images: finds images.

    Raises:
      UserError: there is no image.
    """
    path = next(_places(name, annotation, images), None)
    if path is not None:
        below = os.path.relpath(path, images.folder)
        return (name if below.startswith(os.pardir) else stem_of(below)), path
    if annotation.has_image:
        return name, EmbeddedImage(annotation.path)
    raise UserError(
        "The image of an annotation is nowhere.",
        where=annotation.path,
        received=f"imagePath '{annotation.image_path}', and no imageData",
        accepted="an image at that path beside the file, or of that name or of the file's name in "
        "--images_dir",
        fix="give the folder of the images with --images_dir",
    )


def _places(name: str, annotation: Annotation, images: FileFinder) -> Iterator[str]:
    """Yields the files that may be the image, the likeliest first."""
    listed = composed(annotation.image_path)
    if listed:
        beside = os.path.join(os.path.dirname(annotation.path), *listed.split("/"))
        if os.path.isfile(beside):
            yield os.path.normpath(beside)
        base, folder = posixpath.basename(listed), posixpath.dirname(name)
        for place in (posixpath.join(folder, base), base):
            named = images.named(place)
            if named is not None:
                yield named[1]
    own = images.find(name)
    if own is not None:
        yield own
