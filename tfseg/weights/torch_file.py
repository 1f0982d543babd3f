"""Reads the arrays of a PyTorch weight file without PyTorch and without running anything in it.

Such a file is a pickle beside raw numbers, and a pickle may name any function to be called. Here no
name is ever looked up: those that describe tensors are recognised by their text and stand for
objects of this module; all others become objects that do nothing.

Both layouts are read: the zip archive, and the sequence of pickles that PyTorch wrote before 1.6.
So are `.safetensors` files, which hold a table and numbers and nothing else.
"""

import dataclasses
import errno
import io
import logging
import math
import struct
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np

from tfseg import files, unpickling
from tfseg.errors import UserError
from tfseg.unpickling import Dictionary, Inert

log = logging.getLogger(__name__)

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_TYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    # NumPy has no bfloat16: the upper half of a float32, widened after reading.
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
# The same for .safetensors.
_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
# Entries under which training programs keep the state dictionary.
_NESTED = ("state_dict", "model_state_dict", "model", "net")
_SHOWN = 300


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """Stands for a torch storage class."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers in the file."""

    type: _StorageType | None
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    if isinstance(storage, Inert):
        return Inert()
    if not isinstance(storage, _Storage) or not (
        _is_count(offset)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides)
        and all(map(_is_count, (*shape, *strides)))
    ):
        raise ValueError("a tensor has a malformed shape")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Unpickler(unpickling.Unpickler):
    """An unpickler that imports nothing.

    Attributes:
      storages: every storage met so far, by key; an optimiser's are among them.
    """

    def __init__(self, file: BinaryIO, size: int):
        super().__init__(file, size)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns this module's stand-in for a name; never what the name stands for."""
        if module in ("torch", "torch.storage") and name in _TYPES:
            return _StorageType(name)
        return _KNOWN.get((module, name), Inert)

    def persistent_load(self, pid: Any) -> Any:
        """Describes a storage; its numbers are read later."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            return Inert()
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("a storage is part of another one")
        if not isinstance(pid[2], str) or not _is_count(pid[4]):
            raise ValueError("a storage has a malformed name or length")
        # Numbers of a type that no array has are an error where a wanted tensor has them only.
        storage = _Storage(pid[1] if isinstance(pid[1], _StorageType) else None, pid[2], pid[4])
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key} is described in two ways")
        return storage


def _check_storage(storage: _Storage, size: int) -> np.dtype:
    """Returns the number type of a storage after comparing its length with the bytes present."""
    dtype = _dtype(storage)
    if storage.size < 0 or storage.size * dtype.itemsize > size:
        raise ValueError(f"storage {storage.key} is longer than the file")
    return dtype


def _dtype(storage: _Storage) -> np.dtype:
    if storage.type is None:
        raise ValueError("a tensor's numbers have an unknown type")
    return np.dtype(_TYPES[storage.type.name])


def _own_shape(tensor: _Tensor) -> list[int]:
    """Returns the shape of what a tensor holds: axes that `expand()` repeats have length 1."""
    return [min(n, 1) if stride == 0 else n for n, stride in zip(tensor.shape, tensor.strides)]


def _array(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """Cuts a tensor out of its storage; repeated axes stay views, which cannot be written to."""
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, numbers.dtype)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides))
    if last >= numbers.size:
        raise ValueError("a tensor reaches beyond its storage")
    shape = _own_shape(tensor)
    # The stride of an axis of length 1 says nothing, and may be too large for NumPy.
    strides = [0 if n == 1 else s * numbers.itemsize for n, s in zip(shape, tensor.strides)]
    own = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], shape, strides)
    own = _widened(own) if tensor.storage.type.name.startswith("BF") else own.copy()
    return own if tuple(shape) == tensor.shape else np.broadcast_to(own, tensor.shape)


def _widened(upper_halves: np.ndarray) -> np.ndarray:
    """Turns the bits of bfloat16 numbers into float32."""
    return np.left_shift(upper_halves.astype(np.uint32), 16, dtype=np.uint32).view(np.float32)


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuses what torch.save never writes: a small file might unpack to any size."""
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ValueError(f"{member.filename} is compressed or encrypted")
    if sum(member.file_size for member in archive.infolist()) > size:
        raise ValueError("its members are longer than the file")


# Reads the numbers of a storage.
_Numbers = Callable[[_Storage], np.ndarray]


def _read_zip(archive: zipfile.ZipFile, size: int) -> tuple[Any, _Numbers]:
    _check_members(archive, size)
    names = set(archive.namelist())
    roots = [n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError("the archive has no data.pkl, or several")
    pickled = archive.read(roots[0] + "data.pkl")
    root = _Unpickler(io.BytesIO(pickled), len(pickled)).load()
    order = "little"
    if roots[0] + "byteorder" in names:
        order = archive.read(roots[0] + "byteorder").decode("ascii", "replace")

    def numbers(storage: _Storage) -> np.ndarray:
        name = f"{roots[0]}data/{storage.key}"
        dtype = _check_storage(storage, archive.getinfo(name).file_size)
        stored = dtype.newbyteorder("<" if order == "little" else ">")
        return np.frombuffer(archive.read(name), stored, storage.size).astype(dtype, copy=False)

    return root, numbers


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, _Numbers]:
    """Reads magic number, version, system facts, the object, the keys, then all numbers."""
    if _Unpickler(file, size).load() != _LEGACY_MAGIC:
        raise ValueError("it does not start as a PyTorch file does")
    _Unpickler(file, size).load()
    system = _Unpickler(file, size).load()
    order = "<" if not isinstance(system, dict) or system.get("little_endian", True) else ">"
    reader = _Unpickler(file, size)
    root = reader.load()
    storages = reader.storages
    keys = _Unpickler(file, size).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("the list of storages is missing")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        count = struct.unpack(order + "q", file.read(8))[0]
        if key not in storages:
            raise ValueError(f"storage {key} belongs to no tensor")
        bytes_each = 0 if storages[key].type is None else _dtype(storages[key]).itemsize
        if not bytes_each or not 0 <= count * bytes_each <= size - file.tell():
            raise ValueError(f"storage {key} is longer than the file")
        places[key] = file.tell(), count
        file.seek(count * bytes_each, 1)

    def numbers(storage: _Storage) -> np.ndarray:
        start, count = places[storage.key]
        dtype = _check_storage(dataclasses.replace(storage, size=count), size - start)
        file.seek(start)
        raw = file.read(count * dtype.itemsize)
        return np.frombuffer(raw, dtype.newbyteorder(order), count).astype(dtype, copy=False)

    return root, numbers


def _tensors(root: Any, path: str, entry: str | None) -> dict[str, _Tensor]:
    """Returns the state dictionary: the object itself, or its entry of a name."""
    if entry is not None:
        root = _entry(root, path, entry)
    for _ in _NESTED:
        inner = [
            root[name]
            for name in _NESTED
            if isinstance(root, dict) and isinstance(root.get(name), dict)
        ]
        root = inner[0] if inner else root
    if not isinstance(root, dict):
        raise ValueError("it holds no dictionary of tensors")
    if root.skipped:
        log.warning("%s: %d entries whose names are no texts are left out", path, root.skipped)
    return {key: value for key, value in root.items() if isinstance(value, _Tensor)}


def _entry(root: Any, path: str, entry: str) -> Any:
    """Returns an entry of a file's dictionary.

    Raises:
      UserError: it has none of this name.
    """
    found = root.get(entry) if isinstance(root, dict) else None
    if not isinstance(found, dict):
        items = root.items() if isinstance(root, dict) else ()
        entries = [key for key, value in items if isinstance(value, dict)]
        raise UserError(
            "The file has no such entry.",
            where=path,
            received=entry,
            accepted=", ".join(map(str, entries))[:_SHOWN] or "none: the file is one dictionary",
        )
    return found


def _cut(tensors: Iterable[_Tensor], numbers: _Numbers, size: int) -> dict[_Tensor, np.ndarray]:
    """Returns the array of each tensor; tied ones, which are equal here, are one array.

    Args:
      tensors: of a file.
      numbers: reads a storage; each is read once.
      size: of the file, bytes.

    Raises:
      ValueError: they would take more memory than the tensors of such a file can.
    """
    wanted = dict.fromkeys(tensors)
    by_storage: dict[str, list[_Tensor]] = {}
    for tensor in wanted:
        by_storage.setdefault(tensor.storage.key, []).append(tensor)
    widths = {tensor: _dtype(tensor.storage).itemsize for tensor in wanted}
    needed = sum(math.prod(_own_shape(tensor)) * width for tensor, width in widths.items())
    allowed = files.MEMORY_PER_FILE_BYTE * size + files.MEMORY_BESIDES
    if needed > allowed:
        raise ValueError(f"its tensors would take {needed} bytes, a file of its size {allowed}")
    arrays = {}
    for views in by_storage.values():
        content = numbers(views[0].storage)
        arrays |= {tensor: _array(tensor, content) for tensor in views}
    return arrays


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    import safetensors

    try:
        entries = safetensors.deserialize(file.read())
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from None
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise ValueError(f"{name} has numbers of type {entry['dtype']}")
        dtype = np.dtype(_SAFETENSORS_TYPES[entry["dtype"]])
        array = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
        arrays[name] = _widened(array) if entry["dtype"] == "BF16" else array
    return arrays


def read(path: str, entry: str | None = None) -> dict[str, np.ndarray]:
    """Reads every tensor of a state dictionary saved by `torch.save`, or of a `.safetensors` file.

    Args:
      path: a `.safetensors` file; or one of any other name written by `torch.save`, whose state
        dictionary is the top object or its entry 'state_dict', 'model_state_dict', 'model' or
        'net'.
      entry: of a file of `torch.save`, the entry with the state dictionary, such as 'model_ema';
        None: as above.

    Returns:
      Arrays by name, in the file's types (bfloat16 as float32). Tied tensors are one array; axes
      that `expand()` repeats are views. Other objects are left out, and so are entries whose names
      are no texts; these are counted in a warning.

    Raises:
      UserError: the file is not such a file, it lacks the entry, it is damaged, or its tensors
        would take more memory than `files.MEMORY_PER_FILE_BYTE` times the file and
        `files.MEMORY_BESIDES`.
    """
    try:
        with files.open_regular(path, what="The file of weights") as file:
            if path.endswith(".safetensors"):
                return _entry(None, path, entry) if entry else _read_safetensors(file)
            size = files.file_bytes(file)
            if not zipfile.is_zipfile(file):
                file.seek(0)
                return _state_dictionary(*_read_legacy(file, size), path, size, entry)
            with zipfile.ZipFile(file) as archive:
                return _state_dictionary(*_read_zip(archive, size), path, size, entry)
    except FileNotFoundError:
        raise UserError("No such file.", where=path) from None
    except OSError as error:
        # Positions in a damaged archive may lie before its beginning; the rest is no damage.
        if error.errno != errno.EINVAL:
            raise
        raise _damaged(path, error) from None
    except (*unpickling.ERRORS, zipfile.BadZipFile, struct.error) as error:
        raise _damaged(path, error) from None


def _state_dictionary(
    root: Any, numbers: _Numbers, path: str, size: int, entry: str | None
) -> dict[str, np.ndarray]:
    tensors = _tensors(root, path, entry)
    arrays = _cut(tensors.values(), numbers, size)
    return {name: arrays[tensor] for name, tensor in tensors.items()}


def _damaged(path: str, error: Exception) -> UserError:
    return UserError(
        f"The file cannot be read as PyTorch weights: {str(error)[:_SHOWN]}",
        where=path,
        fix="download or copy it again; nothing in it was executed",
    )
