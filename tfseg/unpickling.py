"""Unpickles files of others: runs nothing in them, and takes no more time or memory than they have.

A pickle may name any function to be called; here a name gives what `find_class` of a subclass
returns, and that is never what the name stands for. A pickle of a few bytes may also reserve
gigabytes (numbers of its memo), or take for ever (a tuple of tuples of tuples, each of them twice,
as the key of a dictionary). Therefore Python's own unpickler in Python is used, whose memo is a
dictionary, and the only keys that are kept are texts.
"""

import pickle
from typing import Any, BinaryIO

# What damaged pickles raise, besides what the functions of a subclass do.
ERRORS = (
    pickle.UnpicklingError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Numbers of the memo are 32 bits wide in every pickle but those of text.
_MAX_MEMO = 1 << 32


class Inert:
    """Stands for what is not needed: takes any arguments, keeps nothing, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return self

    def append(self, value: Any) -> None:
        """Takes part in unpickling of lists."""

    def extend(self, values: Any) -> None:
        """Takes part in unpickling of lists."""


class Dictionary(dict):
    """Stands for every dictionary; keeps the entries whose key is a text.

    Attributes:
      skipped: number of the other entries.
    """

    def __init__(self, items: Any = ()):
        super().__init__()
        self.skipped = 0
        for key, value in items.items() if isinstance(items, dict) else items:
            self.put(key, value)

    def put(self, key: Any, value: Any) -> None:
        """Adds an entry."""
        if type(key) is str:
            self[key] = value
        else:
            self.skipped += 1


class _Rest:
    """The rest of a file; a length that the pickle states allocates no more than that."""

    def __init__(self, file: BinaryIO, file_bytes: int):
        self._file, self._bytes = file, file_bytes

    def read(self, n: int) -> bytes:
        return self._file.read(min(n, max(0, self._bytes - self._file.tell())))

    def readline(self) -> bytes:
        return self._file.readline()


class Unpickler(pickle._Unpickler):
    """Reads one pickle.

    Args:
      file: at the pickle's start; left at its end.
      file_bytes: size of the whole file.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, file_bytes: int):
        super().__init__(_Rest(file, file_bytes), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for a name."""
        return Inert

    def persistent_load(self, pid: Any) -> Any:
        """Returns the stand-in for an object outside the pickle."""
        return Inert()

    def set_state(self, target: Any, state: Any) -> None:
        """Gives an object the state that the pickle says; by default it is not needed."""

    def _put_all(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, Inert):
            return
        if not isinstance(target, Dictionary) or len(items) % 2:
            raise pickle.UnpicklingError("entries of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            target.put(key, value)

    def _load_empty_dictionary(self) -> None:
        self.append(Dictionary())

    def _load_dictionary(self) -> None:
        items = self.pop_mark()
        self.append(Dictionary())
        self._put_all(self.stack[-1], items)

    def _load_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put_all(self.stack[-1], [key, value])

    def _load_items(self) -> None:
        items = self.pop_mark()
        self._put_all(self.stack[-1], items)

    def _load_build(self) -> None:
        state = self.stack.pop()
        self.set_state(self.stack[-1], state)

    # Sets compute hashes of what they hold, as dictionaries do of keys.
    def _load_empty_set(self) -> None:
        self.append(Inert())

    def _load_frozen_set(self) -> None:
        self.pop_mark()
        self.append(Inert())

    def _load_members(self) -> None:
        self.pop_mark()

    def _load_byte_array(self) -> None:
        # Python fills it with zeros before it reads.
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def _load_put(self) -> None:
        number = int(self.readline()[:-1])
        if not 0 <= number < _MAX_MEMO:
            raise pickle.UnpicklingError("a number of the memo is out of range")
        self.memo[number] = self.stack[-1]

    def _load_extension(self) -> None:
        raise pickle.UnpicklingError("extension codes are not known here")

    dispatch |= {
        pickle.EMPTY_DICT[0]: _load_empty_dictionary,
        pickle.DICT[0]: _load_dictionary,
        pickle.SETITEM[0]: _load_item,
        pickle.SETITEMS[0]: _load_items,
        pickle.BUILD[0]: _load_build,
        pickle.EMPTY_SET[0]: _load_empty_set,
        pickle.FROZENSET[0]: _load_frozen_set,
        pickle.ADDITEMS[0]: _load_members,
        pickle.BYTEARRAY8[0]: _load_byte_array,
        pickle.PUT[0]: _load_put,
        pickle.EXT1[0]: _load_extension,
        pickle.EXT2[0]: _load_extension,
        pickle.EXT4[0]: _load_extension,
    }
