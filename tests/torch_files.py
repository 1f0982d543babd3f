"""Writes files as `torch.save` does, in both of its layouts, opcode by opcode."""

import pickle
import struct
import zipfile

import numpy as np

from tfseg.weights import torch_file

_STORAGES = {
    "bfloat16": "BFloat16Storage",
    "float16": "HalfStorage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
}


def op_global(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def op_text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def op_integer(value):
    return b"J" + struct.pack("<i", value)


def op_tuple(*items):
    return b"(" + b"".join(items) + b"t"


def op_dict(**items):
    """A plain dictionary of pickled values."""
    return b"}(" + b"".join(op_text(name) + value for name, value in items.items()) + b"u"


def op_tensor(key, array, *, is_parameter=False):
    """One tensor whose numbers are in storage `key`, as a view with the array's strides."""
    storage = op_tuple(
        op_text("storage"),
        op_global("torch", _STORAGES[array.dtype.name]),
        op_text(key),
        op_text("cpu"),
        op_integer(array.size),
        b"N",
    )
    hooks = op_global("collections", "OrderedDict") + b")R"
    strides = [s // array.itemsize for s in array.strides]
    arguments = op_tuple(
        storage + b"Q",
        op_integer(0),
        op_tuple(*map(op_integer, array.shape)),
        op_tuple(*map(op_integer, strides)),
        b"\x89",
        hooks,
    )
    tensor = op_global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"
    if not is_parameter:
        return tensor
    rebuild = op_global("torch._utils", "_rebuild_parameter")
    return rebuild + op_tuple(tensor, b"\x88", hooks) + b"R"


def op_state_dict(arrays, keys, extra=b""):
    body = b"".join(op_text(n) + op_tensor(keys[n], a) for n, a in arrays.items())
    return op_global("collections", "OrderedDict") + b")R(" + body + extra + b"u"


def write_pickle(path, pickled, storages, *, legacy):
    """Writes an object, given by its opcodes, and the numbers of its storages by key."""
    pickled = b"\x80\x02" + pickled + b"."
    if not legacy:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            for key, array in storages.items():
                archive.writestr(f"archive/data/{key}", array.tobytes())
        return
    header = [torch_file._LEGACY_MAGIC, 1001, {"little_endian": True}]
    # The order of the numbers is the order of the keys, not that of the tensors.
    keys = list(storages)[::-1]
    with open(path, "wb") as file:
        for value in header:
            file.write(pickle.dumps(value, 2))
        file.write(pickled + pickle.dumps(keys, 2))
        for key in keys:
            file.write(struct.pack("<q", storages[key].size) + storages[key].tobytes())


def write_torch(path, arrays, *, legacy, extra=b"", nested=None):
    """Writes a state dictionary; names of one array object share one storage.

    `extra` is put behind its last entry. `nested` is the entry of a training program's dictionary
    that it becomes, beside an optimiser with a tensor of its own.
    """
    keys = {name: str(id(array)) for name, array in arrays.items()}
    storages = {keys[name]: array for name, array in arrays.items()}
    pickled = op_state_dict(arrays, keys, extra)
    if nested is not None:
        momentum = np.full([3], 9.0, np.float32)
        storages["momentum"] = momentum
        optimizer = op_dict(momentum=op_tensor("momentum", momentum))
        arguments = op_global("argparse", "Namespace") + b")\x81" + op_dict(lr=op_integer(1)) + b"b"
        items = {nested: pickled, "optimizer": optimizer, "epoch": op_integer(3), "args": arguments}
        pickled = op_dict(**items)
    write_pickle(path, pickled, storages, legacy=legacy)
