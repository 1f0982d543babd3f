"""Finding classes by name among names that others wrote: lists of splits, files of word vectors."""

import difflib
from collections.abc import Callable, Sequence

from tfseg.errors import UserError

# Names of one class in different data sets, normalised.
ALIASES = (
    ("aeroplane", "airplane"),
    ("bedclothes", "bedcloth"),
    ("cloth", "clothes"),
    ("diningtable", "table"),
    ("motorbike", "motorcycle"),
    ("sofa", "couch"),
    ("tvmonitor", "tv"),
)
_BACKGROUND = frozenset({"background", "bg"})
# Classes that are named where two lists differ.
_COMPARED = 4
_ALIASES_OF = {name: group for group in ALIASES for name in group}


def normalised(name: str) -> str:
    """Returns a name in lower case, without blanks, underscores and hyphens."""
    return "".join(c for c in name.lower() if c not in " _-")


def is_background(name: str) -> bool:
    """Says whether a name is one of background: 'background', '_background_', 'bg'."""
    return normalised(name) in _BACKGROUND


def compared(names: Sequence[str], others: Sequence[str]) -> str:
    """Returns how many classes there are, and the first ones in which others differ.

    >>> compared(["background", "cat", "dog"], ["background", "cat"])
    "3 classes, class 2 is 'dog'"
    """
    differ = [k for k, name in enumerate(names) if list(others[k : k + 1]) != [name]]
    listed = "".join(f", class {k} is '{names[k]}'" for k in differ[:_COMPARED])
    return f"{len(names)} classes{listed}" + (" ..." if len(differ) > _COMPARED else "")


def matches(names: Sequence[str], wanted: str) -> list[int]:
    """Returns the places of a name among others.

    The first of these rules that finds one decides: the very name; the name but for case, blanks,
    underscores and hyphens; a declared alias (`ALIASES`). So 'table' is 'table' where there is also
    a 'dining table'.
    """
    plain = normalised(wanted)
    rules: tuple[Callable[[str], bool], ...] = (
        lambda name: name == wanted,
        lambda name: normalised(name) == plain,
        lambda name: normalised(name) in _ALIASES_OF.get(plain, ()),
    )
    for rule in rules:
        found = [i for i, name in enumerate(names) if rule(name)]
        if found:
            return found
    return []


def find(names: Sequence[str], wanted: Sequence[str], *, what: str, where: str) -> list[int]:
    """Returns the place of every wanted name among names.

    Args:
      names: among which to look.
      wanted: what is looked for, see `matches`.
      what: what the names are, for the message: "The split names a class that is not in <what>."
      where: the flag or file that wants them.

    Raises:
      UserError: a name fits none, or several; names what is near.
    """
    places = []
    for name in wanted:
        found = matches(names, name)
        if len(found) > 1:
            raise UserError(
                f"Class '{name}' fits several names of {what}.",
                where=where,
                received=", ".join(repr(names[i]) for i in found),
                fix="leave one of them, or write the name as it stands there",
            )
        if not found:
            raise UserError(
                f"Class '{name}' is not among the names of {what}.",
                where=where,
                received=name,
                accepted=_near(names, name),
                fix="write the name as it stands there (case, blanks, '_' and '-' do not matter)",
            )
        places += found
    return places


def _near(names: Sequence[str], wanted: str, most: int = 8) -> str:
    """Names those that look like the wanted one; where none does, the first ones."""
    by_plain = {normalised(name): name for name in names}
    near = difflib.get_close_matches(normalised(wanted), by_plain, n=4, cutoff=0.5)
    if near:
        return "near matches: " + ", ".join(by_plain[name] for name in near)
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
