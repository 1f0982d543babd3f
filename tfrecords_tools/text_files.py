"""Reading a user's text and JSON files."""

import os
from typing import Any

from tfseg import files
from tfseg.errors import UserError


def _not_there(path: str) -> UserError:
    if path.lstrip().startswith("{"):
        return UserError(
            "The name of a file is needed here, not JSON.",
            where=path,
            fix="write this into a file, such as map.json, and give the name of the file",
        )
    return UserError(
        "No such file.",
        where=path,
        received=f"the folder has no file '{os.path.basename(path)}'"
        if os.path.isdir(os.path.dirname(path) or ".")
        else "the folder is not there either",
        accepted="a file that exists",
        fix=files.did_you_mean(path, "check the path; it counts from the folder that you are in"),
    )


def read_text(path: str) -> str:
    """Reads a UTF-8 file, with or without a byte-order mark.

    Raises:
      UserError: there is no such file, or it is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except FileNotFoundError:
        raise _not_there(path) from None
    except IsADirectoryError:
        raise UserError("A file is needed here, not a folder.", where=path) from None
    except UnicodeDecodeError as error:
        raise UserError(
            "A text file is not UTF-8.",
            where=path,
            received="UTF-16" if files.is_utf16(error.object) else str(error),
            accepted="text in UTF-8",
            fix=files.SAVE_AS_UTF8,
        ) from None


def read_json(
    path: str, form: Any, *, what: str, accepted: str | None = None, check_texts: bool = True
) -> Any:
    """Reads a user's JSON file of any length; see `tfseg.files.read_json`.

    Raises:
      UserError: there is no such file, or it is not as `form` says.
    """
    try:
        return files.read_json(
            path,
            form,
            what=what,
            accepted=accepted,
            fix="correct the file, or export it again; its encoding is UTF-8",
            max_bytes=None,
            check_texts=check_texts,
        )
    except FileNotFoundError:
        raise _not_there(path) from None
