"""Ids and colours of masks that no class has, told of all masks at once.

A converter stops at the first such mask. A user who adds its ids to the label map would then stop
at the next mask, and so on. So the other masks are looked through before the error is told.
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tfseg.data.parallel import parallel_map
from tfseg.errors import UserError

_NAMED = 20


class UnknownValuesError(UserError):
    """A mask holds ids, or colours, that no class has.

    Attributes:
      values: these ids or colours, as text.
    """

    def __init__(self, what: str, *, values: Sequence[str] = (), **parts: Any):
        super().__init__(what, **parts)
        self.values = tuple(values)


@contextlib.contextmanager
def told_of_all(
    paths: Sequence[str], read: Callable[[str], Any], *, num_workers: int
) -> Iterator[None]:
    """Adds the unknown values of all masks to an error that names those of one.

    Args:
      paths: of the masks.
      read: reads one mask, as the code inside the context does; picklable.
      num_workers: processes.

    Raises:
      UnknownValuesError: the code inside the context raised it.
    """
    try:
        yield
    except UnknownValuesError as error:
        first = error
    else:
        return
    print("looking for more such values in the other masks", flush=True)
    look = functools.partial(_unknown_in, read)
    found = collections.Counter(
        value for values in parallel_map(look, paths, num_workers=num_workers) for value in values
    )
    named = ", ".join(f"{value} in {count}" for value, count in found.most_common(_NAMED))
    more = f" and {len(found) - _NAMED} more" * (len(found) > _NAMED)
    raise UnknownValuesError(
        first.what,
        values=list(found),
        where=first.where,
        received=f"{first.received}. Of all {len(paths)} masks: {named}{more}",
        accepted=first.accepted,
        fix=first.fix,
    )


def _unknown_in(read: Callable[[str], Any], path: str) -> tuple[str, ...]:
    try:
        read(path)
    except UnknownValuesError as error:
        return error.values
    except UserError:
        # Whatever else is wrong with this mask is told when its turn comes.
        return ()
    return ()
