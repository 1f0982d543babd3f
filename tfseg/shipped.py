"""Files that come with the package: the flagfiles of experiments/ and the class splits they name.

An installed package holds them as `tfseg/experiments/`, where setup.py puts them; in a clone they
are the folder beside the package.
"""

import pathlib

_PACKAGE = pathlib.Path(__file__).resolve().parent
_NAME = "experiments"


def _folder() -> pathlib.Path:
    own = _PACKAGE / _NAME
    return own if own.is_dir() else _PACKAGE.parent / _NAME


def find(name: str, suffix: str) -> str | None:
    """Returns the path of a file that comes with the package, None where there is none.

    Args:
      name: its name with or without `experiments/` and the suffix, such as 'digits' or
        'pseudoseg/voc12'.
      suffix: of its kind, '.flags' or '.json'.
    """
    parts = pathlib.PurePosixPath(name.removesuffix(suffix) + suffix).parts
    if parts[0] == _NAME:
        parts = parts[1:]
    if not parts or parts[0] == "/" or ".." in parts:
        return None
    path = _folder().joinpath(*parts)
    return str(path) if path.is_file() else None


def names(suffix: str) -> list[str]:
    """Returns the names of the files of one kind, without the suffix."""
    folder = _folder()
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob(f"*{suffix}"))
    return sorted(path.removesuffix(suffix) for path in paths)
