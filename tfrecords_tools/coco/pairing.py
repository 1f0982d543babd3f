"""Which image file an id has, and which entry of the instances files an image file has."""

import os
import posixpath
from collections.abc import Mapping, Sequence

from tfrecords_tools.coco.instances import ImageAnnotations
from tfrecords_tools.file_finder import FileFinder, stem_of
from tfseg.errors import UserError


class Matcher:
    """Finds the entry of an image file."""

    def __init__(self, images: Mapping[str, ImageAnnotations]):
        self._images = images
        self._by_name: dict[str, list[str]] = {}
        for stem in images:
            self._by_name.setdefault(posixpath.basename(stem), []).append(stem)
        self._file_of: dict[str, str] = {}

    def find(self, path: str) -> ImageAnnotations | None:
        """Returns the entry of an image, None if there is none.

        Args:
          path: below the folder of images.

        Raises:
          UserError: several fit, or one fits two images.
        """
        stem = stem_of(path)
        parts = stem.split("/")
        fitting = [s for s in self._by_name.get(parts[-1], ()) if _is_end(s.split("/"), parts)]
        if stem in fitting:
            fitting = [stem]
        # Of several ends of the path the longest is the most exact.
        inner = [s for s in fitting if len(s) <= len(stem)]
        if inner:
            fitting = [max(inner, key=len)]
        if len(fitting) > 1:
            raise UserError(
                f"Several images of the instances files fit '{path}'.",
                where=self._images[fitting[0]].file,
                received=", ".join(self._images[s].name for s in fitting[:5]),
                accepted="images that lie in folders as in 'file_name'",
                fix="let --images_dir be the folder above these folders",
            )
        if not fitting:
            return None
        other = self._file_of.setdefault(fitting[0], path)
        if stem_of(other) != stem:
            entry = self._images[fitting[0]]
            raise UserError(
                "One image of the instances files fits two image files.",
                where=entry.where,
                received=f"{other}, {path}",
                accepted="a 'file_name' with the folders below --images_dir",
            )
        return self._images[fitting[0]]

    def near(self, path: str) -> list[str]:
        """Returns images of the same name in other folders, else any."""
        stems = self._by_name.get(posixpath.basename(stem_of(path))) or list(self._images)
        return [self._images[s].name for s in stems[:3]]


def _is_end(a: Sequence[str], b: Sequence[str]) -> bool:
    """Says whether one of two paths is the end of the other."""
    n = min(len(a), len(b))
    return a[len(a) - n :] == b[len(b) - n :]


class CocoFinder:
    """Finds `<images_dir>/<id>.*`, for bare ids in the folders below, too."""

    def __init__(self, images_dir: str):
        self.folder = images_dir
        self._finder = FileFinder(images_dir)
        self.extensions = self._finder.extensions
        self._below = sorted(
            n for n in os.listdir(images_dir) if os.path.isdir(os.path.join(images_dir, n))
        )

    def find(self, i: str) -> str | None:
        """Returns the path of an id's image, None if there is none.

        Raises:
          UserError: several files fit.
        """
        path = self._finder.find(i)
        if path is not None or "/" in i:
            return path
        found = [p for p in (self._finder.find(f"{f}/{i}") for f in self._below) if p]
        if len(found) > 1:
            raise UserError(
                f"Several files fit id '{i}'.", where=self.folder, received=", ".join(found)
            )
        return found[0] if found else None

    def named(self, path: str) -> tuple[str, str] | None:
        """Finds the image that a text names, with or without extension; see `FileFinder.named`.

        Raises:
          UserError: several files fit.
        """
        for i in dict.fromkeys((path, stem_of(path))):
            found = self.find(i)
            if found is not None:
                return i, found
        return None

    def near(self, i: str) -> list[str]:
        """Returns files of an id's folder whose names look like it."""
        return self._finder.near(i)
