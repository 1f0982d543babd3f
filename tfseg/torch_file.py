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
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from tfseg.errors import UserError

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


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """Stands for a torch storage class."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers in the file."""

    type: _StorageType
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dictionary(dict):
    """Stands for OrderedDict; has attributes, which some files set."""


class _Inert:
    """Stands for everything else: takes any arguments, keeps nothing, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Takes part in unpickling of lists."""

    def extend(self, values: Any) -> None:
        """Takes part in unpickling of lists."""


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    return _Tensor(storage, int(offset), tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
    """An unpickler that imports nothing.

    Attributes:
      storages: every storage met so far, by key; an optimiser's are among them.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns this module's stand-in for a name; never what the name stands for."""
        if module in ("torch", "torch.storage") and name in _TYPES:
            return _StorageType(name)
        return _KNOWN.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Any:
        """Describes a storage; its numbers are read later."""
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage":
            if len(pid) > 5 and pid[5] is not None:
                raise ValueError("a storage is part of another one")
            storage = _Storage(pid[1], str(pid[2]), int(pid[4]))
            self.storages[storage.key] = storage
            return storage
        return _Inert()


def _check_storage(storage: _Storage, size: int) -> np.dtype:
    """Returns the number type of a storage after comparing its length with the bytes present."""
    if not isinstance(storage.type, _StorageType):
        raise ValueError("a tensor's numbers have an unknown type")
    dtype = np.dtype(_TYPES[storage.type.name])
    if storage.size < 0 or storage.size * dtype.itemsize > size:
        raise ValueError(f"storage {storage.key} is longer than the file")
    return dtype


def _array(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """Cuts a tensor out of its storage."""
    if (
        len(tensor.shape) != len(tensor.strides)
        or min((*tensor.shape, *tensor.strides, tensor.offset), default=0) < 0
    ):
        raise ValueError("a tensor has a malformed shape")
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, numbers.dtype)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides))
    if last >= numbers.size:
        raise ValueError("a tensor reaches beyond its storage")
    strides = [s * numbers.itemsize for s in tensor.strides]
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides)
    if isinstance(tensor.storage.type, _StorageType) and tensor.storage.type.name.startswith("BF"):
        return _widened(view)
    return view.copy()


def _widened(upper_halves: np.ndarray) -> np.ndarray:
    """Turns the bits of bfloat16 numbers into float32."""
    return np.left_shift(upper_halves.astype(np.uint32), 16, dtype=np.uint32).view(np.float32)


def _check_members(archive: zipfile.ZipFile) -> None:
    """Refuses what torch.save never writes: a small file might unpack to any size."""
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ValueError(f"{member.filename} is compressed or encrypted")


def _read_zip(path: str) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        _check_members(archive)
        names = archive.namelist()
        roots = [n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("the archive has no data.pkl, or several")
        root = _Unpickler(io.BytesIO(archive.read(roots[0] + "data.pkl"))).load()
        order = "little"
        if roots[0] + "byteorder" in names:
            order = archive.read(roots[0] + "byteorder").decode("ascii", "replace")

    def numbers(storage: _Storage) -> np.ndarray:
        name = f"{roots[0]}data/{storage.key}"
        with zipfile.ZipFile(path) as archive:
            dtype = _check_storage(storage, archive.getinfo(name).file_size)
            raw = archive.read(name)
        dtype = dtype.newbyteorder("<" if order == "little" else ">")
        return np.frombuffer(raw, dtype, storage.size).astype(dtype.newbyteorder("="))

    return root, numbers


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """Reads magic number, version, system facts, the object, the keys, then all numbers."""
    if _Unpickler(file).load() != _LEGACY_MAGIC:
        raise ValueError("it does not start as a PyTorch file does")
    _Unpickler(file).load()
    system = _Unpickler(file).load()
    order = "<" if not isinstance(system, dict) or system.get("little_endian", True) else ">"
    reader = _Unpickler(file)
    root = reader.load()
    storages = reader.storages
    keys = _Unpickler(file).load()
    if not isinstance(keys, list):
        raise ValueError("the list of storages is missing")
    arrays = {}
    for key in map(str, keys):
        count = struct.unpack(order + "q", file.read(8))[0]
        if key not in storages:
            raise ValueError(f"storage {key} belongs to no tensor")
        dtype = _check_storage(dataclasses.replace(storages[key], size=count), size)
        raw = file.read(count * dtype.itemsize)
        arrays[key] = np.frombuffer(raw, dtype.newbyteorder(order), count).astype(dtype)
    return root, lambda storage: arrays[storage.key]


def _tensors(root: Any) -> dict[str, _Tensor]:
    """Returns the state dictionary: the object itself, or its entry of the usual name."""
    for _ in _NESTED:
        inner = [
            root[name]
            for name in _NESTED
            if isinstance(root, dict) and isinstance(root.get(name), dict)
        ]
        root = inner[0] if inner else root
    if not isinstance(root, dict):
        raise ValueError("it holds no dictionary of tensors")
    return {str(key): value for key, value in root.items() if isinstance(value, _Tensor)}


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    import safetensors

    with open(path, "rb") as file:
        data = file.read()
    try:
        entries = safetensors.deserialize(data)
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


def read(path: str) -> dict[str, np.ndarray]:
    """Reads every tensor of a state dictionary saved by `torch.save`, or of a `.safetensors` file.

    Args:
      path: a `.safetensors` file; or one of any other name written by `torch.save`, whose state
        dictionary is the top object or its entry 'state_dict', 'model_state_dict', 'model' or
        'net'.

    Returns:
      Arrays by name, in the file's types (bfloat16 as float32). Other objects are left out.

    Raises:
      UserError: the file is not such a file, or it is damaged.
    """
    try:
        if path.endswith(".safetensors"):
            return _read_safetensors(path)
        if zipfile.is_zipfile(path):
            root, numbers = _read_zip(path)
        else:
            with open(path, "rb") as file:
                root, numbers = _read_legacy(file, os.path.getsize(path))
        return {
            name: _array(tensor, numbers(tensor.storage)) for name, tensor in _tensors(root).items()
        }
    except FileNotFoundError:
        raise UserError("No such file.", where=path) from None
    except IsADirectoryError:
        raise UserError(
            "This is a folder, not a file of weights.",
            where=path,
            accepted="a .pth or .safetensors file",
        ) from None
    except OSError as error:
        # Positions in a damaged archive may lie before its beginning; the rest is no damage.
        if error.errno != errno.EINVAL:
            raise
        raise _damaged(path, error) from None
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        struct.error,
        AttributeError,
        EOFError,
        ImportError,
        IndexError,
        KeyError,
        MemoryError,
        OverflowError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise _damaged(path, error) from None


def _damaged(path: str, error: Exception) -> UserError:
    return UserError(
        f"The file cannot be read as PyTorch weights: {error}",
        where=path,
        fix="download or copy it again; nothing in it was executed",
    )
