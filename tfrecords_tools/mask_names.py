"""Which file is the mask of an image: one of its name, or one of its name and an ending.

Source: `x_mask.png` beside `x.jpg` is Roboflow's export "Semantic Segmentation Masks".
"""

import collections
import os
from collections.abc import Collection, Iterable

from tfrecords_tools.file_finder import FileFinder, composed
from tfseg.data.image_files import IMAGE_EXTENSIONS
from tfseg.errors import UserError

# Compression of these changes class ids, so that such a file is never a mask.
_LOSSY = frozenset({".jpg", ".jpeg", ".webp"})
# An ending is the only one that can be meant if it fits so many times the images of any other.
_CLEAR_LEAD = 2
_NAMED = 3


def by_kind(images_dir: str, masks_dir: str, ids: Iterable[str]) -> list[FileFinder]:
    """Returns what finds images and masks where `a.jpg` and `a.png` lie side by side, else nothing.

    Args:
      images_dir, masks_dir: folders of images and masks.
      ids: of the images.
    """
    if not is_one_folder(images_dir, masks_dir):
        return []
    finder = FileFinder(images_dir)
    for i in ids:
        lossy = [os.path.splitext(n)[1].lower() in _LOSSY for n in finder.names_of(i)]
        if sorted(lossy) == [False, True]:
            lossless = [e for e in IMAGE_EXTENSIONS if e not in _LOSSY]
            return [FileFinder(images_dir, _LOSSY), FileFinder(masks_dir, lossless)]
    return []


def are_whole_names(images_dir: str, masks_dir: str, ids: Collection[str]) -> bool:
    """Says whether masks are named `a.jpg.png` and `b.png.png`: one ending does not fit them.

    Args:
      images_dir, masks_dir: folders of images and masks.
      ids: of the images.
    """
    images, masks = FileFinder(images_dir), FileFinder(masks_dir)
    if is_one_folder(images_dir, masks_dir) or any(masks.names_of(i) for i in ids):
        return False
    extensions = {i: os.path.splitext(images.find(i) or "")[1] for i in ids}
    return len({end for i, end in extensions.items() if masks.names_of(i, end)}) > 1


def by_ending(images_dir: str, masks_dir: str, ids: Collection[str]) -> tuple[str, int]:
    """Looks for the ending of masks that do not have the name of their image.

    Args:
      images_dir, masks_dir: folders of images and masks.
      ids: of the images.

    Returns:
      The ending and how many images it fits; ('', 0) where a mask has the name of its image, or
      where nothing fits: what is missing is told with the ids that miss it.

    Raises:
      UserError: several endings fit, or no file beside the images can be a mask.
    """
    masks, together = FileFinder(masks_dir), is_one_folder(images_dir, masks_dir)
    if not together and any(masks.names_of(i) for i in ids):
        return "", 0
    endings = _endings(masks, ids)
    if not endings:
        if together:
            raise _no_masks(images_dir)
        return "", 0
    (best, count), *others = endings.most_common()
    if others and count < _CLEAR_LEAD * others[0][1]:
        listed = [f"'{ending}' ({n} images)" for ending, n in endings.most_common(_NAMED)]
        raise UserError(
            "Masks have other names than their images, and several endings fit.",
            where=masks_dir,
            received=", ".join(listed),
            accepted="one mask for each image: its name and one ending",
            fix=f"say which one, for example --mask_suffix={best}",
        )
    return best, count


def check_one_each(masks: FileFinder, ids: Collection[str]) -> None:
    """Refuses images with several masks, such as `a_mask.png` and `a_mask_1.png`.

    Args:
      masks: finds them by their ending.
      ids: of the images, and of the masks where these lie beside them.

    Raises:
      UserError: an image has further masks; only one of them would be read.
    """
    known = {composed(i) for i in ids}
    further = []
    for folder in sorted({os.path.dirname(i) for i in known}):
        for found in masks.ids_in(folder):
            i, ending, rest = found.rpartition(masks.suffix)
            if not (ending and rest and i in known) or rest[0].isalpha():
                continue
            # A photograph may have such a name; then it has a mask of its own.
            if not masks.names_of(found, masks.suffix):
                further.append(found)
    if further:
        raise UserError(
            f"{len(further)} files look like further masks of an image.",
            where=masks.folder,
            received=", ".join(further[:_NAMED]) + (" ..." if len(further) > _NAMED else ""),
            accepted=f"one mask for each image, whose name ends in '{masks.suffix}'",
            fix="join the masks of an image into one file, or move files that are no masks away",
        )


def is_one_folder(images_dir: str, masks_dir: str) -> bool:
    """Says whether masks lie beside the images."""
    return os.path.realpath(images_dir) == os.path.realpath(masks_dir)


def _endings(masks: FileFinder, ids: Collection[str]) -> collections.Counter:
    """Counts what follows the name of an image in names of files, by images.

    Of the images whose name begins the file's the longest one counts: `a_1_mask` belongs to `a_1`
    and not to `a`. An ending begins with neither letter nor digit and holds a letter.
    """
    known = {composed(i) for i in ids}
    found = collections.Counter()
    for folder in sorted({os.path.dirname(i) for i in known}):
        for i in masks.ids_in(folder):
            places = range(len(i) - 1, len(folder), -1)
            cut = next((k for k in places if i[:k] in known), None)
            if cut is not None and not i[cut].isalnum() and any(c.isalpha() for c in i[cut:]):
                found[i[cut:]] += 1
    return found


def _no_masks(folder: str) -> UserError:
    return UserError(
        "No file beside the images can be a mask.",
        where=folder,
        accepted="masks with the name of their image and an ending (a.jpg, a_mask.png); or "
        "lossless files beside JPEG images (a.jpg, a.png)",
        fix="say the ending with --mask_suffix; or put the masks into a folder of their own, "
        "under the names of their images, and give it with --masks_dir",
    )
