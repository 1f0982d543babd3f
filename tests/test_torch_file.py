"""Files of PyTorch weights: both layouts and safetensors, damaged ones, ones that would do harm."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests.torch_files import (
    op_dict,
    op_global,
    op_integer,
    op_state_dict,
    op_tensor,
    op_text,
    op_tuple,
    write_pickle,
    write_torch,
)
from tfseg.errors import UserError
from tfseg.weights import torch_file

BOTH = pytest.mark.parametrize("legacy", [True, False])


def _array(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@BOTH
def test_nothing_in_a_torch_file_is_executed(tmp_path, legacy):
    mark = tmp_path / "executed"
    call = op_global("os", "system") + op_tuple(op_text(f"touch {mark}")) + b"R"
    path = str(tmp_path / "evil.pth")
    write_torch(path, {"w": _array(2, 3)}, legacy=legacy, extra=op_text("e") + call)
    arrays = torch_file.read(path)
    np.testing.assert_array_equal(arrays["w"], _array(2, 3))
    assert set(arrays) == {"w"}
    assert not mark.exists()
    # The same file does harm when it is unpickled as usual: the test's own proof.
    pickle.load(io.BytesIO(b"\x80\x02" + call + b"."))
    assert mark.exists()


@BOTH
@pytest.mark.parametrize("nested", ["state_dict", "model", "model_state_dict", "net"])
def test_state_dictionary_beside_optimiser_and_unknown_objects(tmp_path, legacy, nested):
    path = str(tmp_path / "weights.pth.tar")
    write_torch(path, {"w": _array(2, 3)}, legacy=legacy, nested=nested)
    arrays = torch_file.read(path)
    assert set(arrays) == {"w"}
    np.testing.assert_array_equal(arrays["w"], _array(2, 3))


@BOTH
def test_dictionary_in_a_dictionary(tmp_path, legacy):
    path = str(tmp_path / "weights.pth")
    inner = op_state_dict({"w": _array(4)}, {"w": "0"})
    pickled = op_dict(model=op_dict(state_dict=inner))
    write_pickle(path, pickled, {"0": _array(4)}, legacy=legacy)
    np.testing.assert_array_equal(torch_file.read(path)["w"], _array(4))


@BOTH
def test_views_and_names_that_share_a_storage(tmp_path, legacy):
    path = str(tmp_path / "weights.pth")
    shared = _array(2, 3)
    body = op_dict(a=op_tensor("0", shared), b=op_tensor("0", shared.T))
    write_pickle(path, body, {"0": shared}, legacy=legacy)
    arrays = torch_file.read(path)
    np.testing.assert_array_equal(arrays["a"], shared)
    np.testing.assert_array_equal(arrays["b"], shared.T)
    arrays["a"][:] = 0
    assert arrays["b"].any()


@BOTH
def test_parameters_are_tensors(tmp_path, legacy):
    path = str(tmp_path / "weights.pth")
    body = op_dict(w=op_tensor("0", _array(3), is_parameter=True))
    write_pickle(path, body, {"0": _array(3)}, legacy=legacy)
    np.testing.assert_array_equal(torch_file.read(path)["w"], _array(3))


@BOTH
@pytest.mark.parametrize("dtype", ["float16", "float64", "int64", ml_dtypes.bfloat16])
def test_types_of_numbers(tmp_path, legacy, dtype):
    path = str(tmp_path / "weights.pth")
    values = np.array([[-1.5, 0.0, 3.0], [256.0, 1e-3, -7.0]])
    values = values.round() if dtype == "int64" else values
    written = {"w": values.astype(dtype), "scalar": np.array(2.0, dtype)}
    write_torch(path, written, legacy=legacy)
    arrays = torch_file.read(path)
    for name, value in written.items():
        assert arrays[name].shape == value.shape
        np.testing.assert_array_equal(arrays[name], value.astype(np.float64))
    expected = np.float32 if dtype is ml_dtypes.bfloat16 else dtype
    assert arrays["w"].dtype == expected


@BOTH
def test_damaged_torch_files_are_errors(tmp_path, legacy):
    path = tmp_path / "weights.pth"
    write_torch(path, {"w": _array(600), "v": _array(300)}, legacy=legacy)
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="cannot be read as PyTorch weights"):
            torch_file.read(str(path))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_bytes_that_were_changed_never_end_in_a_traceback(tmp_path, kind):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        _write_safetensors(path, {"w": _array(6), "v": _array(4)})
    else:
        write_torch(path, {"w": _array(6), "v": _array(4)}, legacy=kind == "legacy", nested="model")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        changed = bytearray(whole)
        changed[rng.integers(len(changed))] = rng.integers(256)
        path.write_bytes(changed)
        try:
            torch_file.read(str(path))
        except UserError:
            refused += 1
    assert refused > 200


def test_compressed_archives_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    array = _array(6)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + op_state_dict({"w": array}, {"w": "0"}) + b".")
        archive.writestr("x/data/0", array.tobytes())
    with pytest.raises(UserError, match="compressed"):
        torch_file.read(str(path))


def test_tensor_that_reaches_beyond_its_numbers_is_an_error(tmp_path):
    path = tmp_path / "weights.pth"
    array = _array(6)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + op_state_dict({"w": array}, {"w": "0"}) + b".")
        archive.writestr("x/data/0", array[:5].tobytes())
    with pytest.raises(UserError, match="longer than the file"):
        torch_file.read(str(path))


# Files of a few bytes that ask for much -----------------------------------------------------------


def _shape(*sides, strides, key="0", size=1):
    """A tensor of any shape and strides over a storage of `size` float32 numbers."""
    storage = op_tuple(
        op_text("storage"),
        op_global("torch", "FloatStorage"),
        op_text(key),
        op_text("cpu"),
        op_integer(size),
    )
    shape, steps = (op_tuple(*map(op_integer, x)) for x in (sides, strides))
    arguments = op_tuple(storage + b"Q", op_integer(0), shape, steps, b"\x89", b"N")
    return op_global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _doubled(times=60):
    """A tuple of a tuple twice, of a tuple twice, and so on: its hash takes 2^times steps."""
    return b")" + b"q\x00h\x00\x86" * times


ONE_TENSOR = op_dict(w=_shape(1, strides=(1,)))
GREEDY = {
    "memo index": b"r\x00\x00\x00\x100" + ONE_TENSOR,
    "memo index of text": b"p900000000000000000000\n0" + ONE_TENSOR,
    "windows that overlap": op_dict(w=_shape(60000, 60000, strides=(1, 1), size=120000)),
    "many views of one storage": op_dict(
        **{f"w{i}": _shape(1000 + i, 1000, strides=(1, 1), size=3000) for i in range(40)}
    ),
    "bytes": b"\x8e" + struct.pack("<Q", 1 << 35) + b"0" + ONE_TENSOR,
    "byte array": b"\x96" + struct.pack("<Q", 1 << 34) + b"0" + ONE_TENSOR,
    "frame": b"\x95" + struct.pack("<Q", 1 << 34) + ONE_TENSOR,
}
SLOW_KEYS = {
    "of an entry": b"}" + _doubled() + b"Ns",
    "of entries": b"}(" + _doubled() + b"Nu",
    "of a new dictionary": b"(" + _doubled() + b"Nd",
    "of OrderedDict": op_global("collections", "OrderedDict")
    + op_tuple(b"(" + _doubled() + b"N\x86l")
    + b"R",
    "of a set": b"\x8f(" + _doubled() + b"\x90",
    "of a frozen set": b"(" + _doubled() + b"\x91",
    "of a storage": op_tuple(op_text("storage"), _doubled(), _doubled(), b"N", op_integer(1)),
}


@BOTH
@pytest.mark.parametrize("kind", GREEDY)
def test_small_files_that_ask_for_much_memory(tmp_path, legacy, kind):
    path = tmp_path / "weights.pth"
    numbers = {"0": np.zeros(120000 if "windows" in kind else 3000, np.float32)}
    write_pickle(path, GREEDY[kind], numbers, legacy=legacy)
    tracemalloc.start()
    try:
        torch_file.read(str(path))
    except UserError:
        pass
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100e6


@BOTH
@pytest.mark.parametrize("kind", SLOW_KEYS)
def test_keys_that_would_take_for_ever(tmp_path, legacy, kind):
    path = str(tmp_path / "weights.pth")
    body = b"}(" + op_text("w") + op_tensor("0", _array(3)) + op_text("other") + SLOW_KEYS[kind]
    write_pickle(path, body + b"u", {"0": _array(3)}, legacy=legacy)
    np.testing.assert_array_equal(torch_file.read(path)["w"], _array(3))


@BOTH
def test_keys_of_other_types_are_skipped_and_told(tmp_path, legacy, caplog):
    path = str(tmp_path / "weights.pth")
    body = b"}(" + op_text("w") + op_tensor("0", _array(3))
    body += op_integer(7) + op_tensor("0", _array(3)) + _doubled() + b"Nu"
    write_pickle(path, body, {"0": _array(3)}, legacy=legacy)
    assert set(torch_file.read(path)) == {"w"}
    assert "2 entries whose names are no texts are left out" in caplog.text


@BOTH
def test_expanded_and_tied_tensors(tmp_path, legacy):
    path = str(tmp_path / "weights.pth")
    base = _array(3, 1)
    expanded = np.broadcast_to(base, (3, 1 << 30))
    body = op_dict(
        w=op_tensor("0", base),
        tied=op_tensor("0", base),
        expanded=_shape(3, 1 << 30, strides=(1, 0), key="0", size=3),
    )
    write_pickle(path, body, {"0": base}, legacy=legacy)
    arrays = torch_file.read(path)
    assert arrays["w"] is arrays["tied"]
    assert arrays["expanded"].shape == expanded.shape and arrays["expanded"].strides == (4, 0)
    np.testing.assert_array_equal(arrays["expanded"][:, -5:], expanded[:, -5:])


def test_each_storage_is_read_once(tmp_path, monkeypatch):
    path, reads = str(tmp_path / "weights.pth"), []
    read = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile, "read", lambda self, name: reads.append(name) or read(self, name)
    )
    shared = _array(2, 3)
    body = op_dict(a=op_tensor("0", shared), b=op_tensor("0", shared.T))
    write_pickle(path, body, {"0": shared}, legacy=False)
    torch_file.read(path)
    assert reads.count("archive/data/0") == 1


def test_state_of_an_object_changes_nothing_of_ours(tmp_path):
    """`BUILD` sets attributes, also those of a class, which the next file would meet."""
    path = str(tmp_path / "weights.pth")
    state = b"N" + op_dict(get=op_integer(1), items=op_integer(1)) + b"\x86"
    body = op_dict(x=op_global("collections", "OrderedDict") + state + b"b")
    write_pickle(path, body, {}, legacy=False)
    torch_file.read(path)
    write_torch(path, {"w": _array(3)}, legacy=False, nested="model")
    assert set(torch_file.read(path)) == {"w"}


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_pipe_is_no_file_of_weights(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="not a file.*\\n.*\\n.*named pipe"):
        torch_file.read(str(tmp_path / name))


def test_file_without_a_dictionary_of_tensors_is_an_error(tmp_path):
    path = str(tmp_path / "weights.pth")
    network = op_global("torchvision.models.resnet", "ResNet") + b")\x81" + op_dict() + b"b"
    write_pickle(path, network, {}, legacy=False)
    with pytest.raises(UserError, match="no dictionary of tensors"):
        torch_file.read(path)
    write_pickle(path, op_integer(3), {}, legacy=True)
    with pytest.raises(UserError, match="no dictionary of tensors"):
        torch_file.read(path)


# safetensors ------------------------------------------------------------------------------------


def _write_safetensors(path, arrays):
    table, data = {"__metadata__": {"format": "pt"}}, b""
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    for name, array in arrays.items():
        end = len(data) + array.nbytes
        table[name] = {
            "dtype": names.get(array.dtype.name, array.dtype.name),
            "shape": list(array.shape),
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    written = {
        "w": _array(2, 3) - 2.5,
        "half": _array(4, dtype=np.float16),
        "brain": (_array(2, 2) / 2).astype(ml_dtypes.bfloat16),
        "count": np.array(7, np.int64),
    }
    _write_safetensors(path, written)
    arrays = torch_file.read(str(path))
    assert set(arrays) == set(written)
    for name, value in written.items():
        assert arrays[name].shape == value.shape
        np.testing.assert_array_equal(arrays[name], value.astype(np.float64))
    assert arrays["brain"].dtype == np.float32


def test_damaged_safetensors_are_errors(tmp_path):
    path = tmp_path / "weights.safetensors"
    _write_safetensors(path, {"w": _array(60), "v": _array(30)})
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="cannot be read as PyTorch weights"):
            torch_file.read(str(path))
    _write_safetensors(path, {"w": np.zeros(3, np.complex64)})
    with pytest.raises(UserError, match="cannot be read as PyTorch weights"):
        torch_file.read(str(path))


def test_missing_files_are_errors(tmp_path):
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(UserError, match="No such file"):
            torch_file.read(str(tmp_path / name))


def test_a_folder_is_no_file_of_weights(tmp_path):
    with pytest.raises(UserError, match="folder"):
        torch_file.read(str(tmp_path))
