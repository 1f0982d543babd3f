import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfseg import checkpoint
from tfseg.errors import UserError


class Network:
    def __init__(self, classes=3, fill=0.0):
        self.variables = [
            tf.Variable(tf.fill([2, classes], fill), name="logits/semantic/weights"),
            tf.Variable(tf.fill([2], fill), name="aspp0/BatchNorm/beta"),
        ]


def make_store(folder, network, step=0, keep=5):
    return checkpoint.Store(
        str(folder), {"model": network}, {"global_step": tf.Variable(step)}, keep
    )


def test_save_and_restore_is_exact(tmp_path):
    network = Network()
    network.variables[0].assign(np.random.default_rng(0).normal(size=[2, 3]))
    make_store(tmp_path, network, 7).save(7)
    other, store = Network(fill=9.0), None
    store = make_store(tmp_path, other)
    assert store.restore().endswith("model.ckpt-7")
    np.testing.assert_array_equal(other.variables[0], network.variables[0])
    assert int(store.state["global_step"]) == 7


def test_only_the_newest_are_kept(tmp_path):
    store = make_store(tmp_path, Network(), keep=2)
    for step in (1, 2, 3):
        store.save(step)
    assert [checkpoint.step_of(p) for p in checkpoint.written(str(tmp_path))] == [2, 3]
    assert tf.train.latest_checkpoint(str(tmp_path)).endswith("model.ckpt-3")
    assert not [n for n in os.listdir(tmp_path) if "ckpt-1." in n]


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "no index"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    store = make_store(tmp_path, Network())
    store.save(1)
    newest = store.save(2)
    data = newest + ".data-00000-of-00001"
    if damage == "flip":
        content = bytearray(open(data, "rb").read())
        content[3] ^= 1
        open(data, "wb").write(content)
    elif damage == "truncate":
        os.truncate(data, 5)
    elif damage == "no manifest":
        os.remove(newest + ".manifest.json")
    else:
        os.remove(newest + ".index")
    assert checkpoint.newest(str(tmp_path)).endswith("model.ckpt-1")


MANIFESTS = {
    "deep": "[" * 100_000,
    "a list": "[]",
    "no files": '{"files": {}}',
    "files that are a list": '{"files": []}',
    "no sizes": '{"files": {"model.ckpt-2.index": null}}',
    "huge sizes": '{"files": {"model.ckpt-2.index": {"bytes": 1e999, "crc32c": ""}}}',
    "files elsewhere": None,
    "networks that are a number": None,
    "not UTF-8": None,
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_malformed_manifest_is_damage(tmp_path, kind):
    store = make_store(tmp_path, Network())
    store.save(1)
    newest = store.save(2)
    path = tmp_path / "model.ckpt-2.manifest.json"
    manifest = json.loads(path.read_text())
    if kind == "files elsewhere":
        manifest["files"]["../x"] = {"bytes": 1, "crc32c": ""}
    if kind == "networks that are a number":
        manifest["networks"] = 3
    path.write_text(MANIFESTS[kind] or json.dumps(manifest))
    if kind == "not UTF-8":
        path.write_bytes(b'{"files": "\xff"}')
    assert checkpoint.newest(str(tmp_path)).endswith("model.ckpt-1")
    with pytest.raises(UserError, match="checkpoint is damaged"):
        checkpoint.newest(newest)
    # Whoever reads its weights nevertheless learns of no network that it names.
    assert checkpoint.deployable_network(newest) == "model"


def test_a_pipe_in_the_place_of_a_file_is_damage(tmp_path):
    store = make_store(tmp_path, Network())
    store.save(1)
    newest = store.save(2)
    for name in (".data-00000-of-00001", ".manifest.json"):
        os.remove(newest + name)
        os.mkfifo(newest + name)
        assert checkpoint.newest(str(tmp_path)).endswith("model.ckpt-1")


@pytest.mark.parametrize("part", [".index", ".data-00000-of-00001"])
def test_a_damaged_checkpoint_without_manifest_is_an_error(tmp_path, part):
    network = Network(fill=3.0)
    prefix = make_store(tmp_path, network).save(1)
    os.remove(prefix + ".manifest.json")
    whole = open(prefix + part, "rb").read()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(100):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        open(prefix + part, "wb").write(content[: rng.integers(len(content))] or content)
        try:
            checkpoint.load_network(network, prefix)
        except UserError as error:
            assert prefix in str(error)
            refused += 1
    # Most of the data file describes objects that are not read.
    assert refused > 10
    os.remove(prefix + part)
    os.mkfifo(prefix + part)
    with pytest.raises(UserError, match="named pipe"):
        checkpoint.load_network(network, prefix)


def test_a_state_file_of_other_bytes_is_passed_over(tmp_path):
    (tmp_path / "checkpoint").write_bytes(b"\xff\xfe\x00")
    assert checkpoint.newest(str(tmp_path)) is None


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    store = make_store(tmp_path, Network())
    os.truncate(store.save(1) + ".data-00000-of-00001", 0)
    with pytest.raises(UserError, match="Every checkpoint of the run is damaged"):
        store.restore()


def test_a_failed_save_leaves_the_old_one(tmp_path, monkeypatch):
    store = make_store(tmp_path, Network())
    store.save(1)

    def full(*args):
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space is left"):
        store.save(2)
    monkeypatch.undo()
    assert checkpoint.newest(str(tmp_path)).endswith("model.ckpt-1")
    assert not [n for n in os.listdir(tmp_path) if n.startswith(".writing")]


def test_loading_names_differing_class_counts(tmp_path):
    prefix = make_store(tmp_path, Network(classes=3)).save(5)
    with pytest.raises(UserError, match="different numbers of classes"):
        checkpoint.load_network(Network(classes=4), prefix)
    assert checkpoint.load_network(Network(fill=1.0), prefix) == 5


def test_resuming_with_another_class_count_is_a_user_error(tmp_path):
    make_store(tmp_path, Network(classes=3)).save(5)
    with pytest.raises(UserError, match="of another network"):
        make_store(tmp_path, Network(classes=4)).restore()


def test_resuming_with_other_state_is_a_user_error(tmp_path):
    make_store(tmp_path, Network()).save(5)
    store = make_store(tmp_path, Network())
    store.state["optimizer/new"] = tf.Variable(0.0)
    with pytest.raises(UserError, match="another kind of run"):
        store.restore()


def test_loading_a_named_network(tmp_path):
    folder = str(tmp_path)
    networks = {"model": Network(fill=1.0), "ema": Network(fill=2.0)}
    prefix = checkpoint.Store(folder, networks, {}).save(1)
    target = Network()
    checkpoint.load_network(target, prefix, "ema")
    assert target.variables[1].numpy().tolist() == [2.0, 2.0]
    with pytest.raises(UserError, match="ema, model"):
        checkpoint.load_network(target, prefix, "hybrid")


def test_the_first_network_is_the_one_to_use(tmp_path):
    networks = {"second": Network(fill=1.0), "first": Network(fill=2.0)}
    prefix = checkpoint.Store(str(tmp_path), networks, {}).save(1)
    assert checkpoint.deployable_network(prefix) == "second"
    target = Network()
    checkpoint.load_network(target, prefix)
    assert target.variables[1].numpy().tolist() == [1.0, 1.0]


def test_missing_and_unreadable_checkpoints(tmp_path):
    assert checkpoint.newest(str(tmp_path)) is None
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.newest(str(tmp_path / "model.ckpt-1"))
    (tmp_path / "model.ckpt-1.index").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_network(Network(), str(tmp_path / "model.ckpt-1"))


def test_a_checkpoint_can_be_moved(tmp_path):
    make_store(tmp_path / "a", Network(fill=4.0)).save(3)
    shutil.move(tmp_path / "a", tmp_path / "b")
    target = Network()
    checkpoint.load_network(target, checkpoint.newest(str(tmp_path / "b")))
    assert target.variables[1].numpy().tolist() == [4.0, 4.0]
    manifest = json.loads((tmp_path / "b" / "model.ckpt-3.manifest.json").read_text())
    assert set(manifest["files"]) == {"model.ckpt-3.index", "model.ckpt-3.data-00000-of-00001"}
