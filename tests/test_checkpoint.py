import gc
import json
import os
import shutil
import tempfile

import numpy as np
import pytest
import tensorflow as tf

from tfseg.errors import UserError
from tfseg.weights.checkpoint import find, reading, writing
from tfseg.weights.checkpoint import store as store_module
from tfseg.weights.checkpoint.names import by_name
from tfseg.weights.checkpoint.store import Store
from tfseg.weights.checkpoint.stored_networks import deployable_network, load_network


class Network:
    def __init__(self, classes=3, fill=0.0):
        self.variables = [
            tf.Variable(tf.fill([2, classes], fill), name="logits/semantic/weights"),
            tf.Variable(tf.fill([2], fill), name="aspp0/BatchNorm/beta"),
        ]


def make_store(folder, network, step=0, keep=5):
    return Store(str(folder), {"model": network}, {"global_step": tf.Variable(step)}, keep)


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
    assert [find.step_of(p) for p in find.written(str(tmp_path))] == [2, 3]
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
    assert find.newest(str(tmp_path)).endswith("model.ckpt-1")


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
    assert find.newest(str(tmp_path)).endswith("model.ckpt-1")
    with pytest.raises(UserError, match="checkpoint is damaged"):
        find.newest(newest)
    # Whoever reads its weights nevertheless learns of no network that it names.
    assert deployable_network(newest) == "model"


def test_a_pipe_in_the_place_of_a_file_is_damage(tmp_path):
    store = make_store(tmp_path, Network())
    store.save(1)
    newest = store.save(2)
    for name in (".data-00000-of-00001", ".manifest.json"):
        os.remove(newest + name)
        os.mkfifo(newest + name)
        assert find.newest(str(tmp_path)).endswith("model.ckpt-1")


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
            load_network(network, prefix)
        except UserError as error:
            assert prefix in str(error)
            refused += 1
    # Most of the data file describes objects that are not read.
    assert refused > 10
    os.remove(prefix + part)
    os.mkfifo(prefix + part)
    with pytest.raises(UserError, match="named pipe"):
        load_network(network, prefix)


def test_a_state_file_of_other_bytes_is_passed_over(tmp_path):
    (tmp_path / "checkpoint").write_bytes(b"\xff\xfe\x00")
    assert find.newest(str(tmp_path)) is None


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
    assert find.newest(str(tmp_path)).endswith("model.ckpt-1")
    assert not [n for n in os.listdir(tmp_path) if n.startswith(".writing")]


def test_workers_with_one_process_number_keep_out_of_each_others_files(tmp_path, monkeypatch):
    """In containers process numbers repeat; the staged files of another worker must stay."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    stores = [make_store(tmp_path, Network()) for _ in range(2)]
    for store in stores:
        store.is_chief = False
    make_tree, seen = store_module._tree, []

    def tree(*args):
        real = make_tree(*args)

        class Tree:
            def write(self, prefix):
                seen.append(prefix)
                if len(seen) == 1:
                    stores[1].save(1)
                real.write(prefix)

        return Tree()

    monkeypatch.setattr(store_module, "_tree", tree)
    stores[0].save(1)
    assert len({os.path.dirname(prefix) for prefix in seen}) == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(5, "Input/output error", "/run/x"), "The disk failed.*EIO"),
        (OSError(2, "No such file or directory", "/run/x"), "No such file.*ENOENT"),
        (tf.errors.NotFoundError(None, None, "/x; No such file or directory"), "ENOENT"),
        (tf.errors.OutOfRangeError(None, None, "/x; File too large [Op:SaveV2]"), "EFBIG"),
        (tf.errors.ResourceExhaustedError(None, None, "/x; Too many open files"), "EMFILE"),
        (tf.errors.UnknownError(None, None, "/x; Input/output error"), "EIO"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else x,
)
def test_a_failed_save_tells_its_cause_and_not_always_lack_of_space(
    tmp_path, monkeypatch, error, words
):
    def fail(*args):
        raise error

    monkeypatch.setattr(store_module, "_tree", fail)
    with pytest.raises(UserError, match=f"(?s){words}") as caught:
        make_store(tmp_path, Network()).save(2)
    assert "space" not in str(caught.value) and "resumes" in str(caught.value)


def test_a_worker_lost_while_saving_is_no_failed_write(tmp_path, monkeypatch):
    def fail(*args):
        raise tf.errors.UnavailableError(None, None, "Connection reset by peer")

    monkeypatch.setattr(store_module, "_tree", fail)
    with pytest.raises(tf.errors.UnavailableError):
        make_store(tmp_path, Network()).save(2)


@pytest.mark.parametrize(
    "name", ["data [v2]", "a*b", "a?b", "back\\slash", "[", "[]a]", "{a,b} 100%"]
)
def test_paths_that_tensorflow_takes_as_patterns(tmp_path, name):
    folder = tmp_path / name
    network = Network(fill=2.0)
    prefix = make_store(folder, network, 7).save(7)
    assert find.newest(str(folder)) == prefix
    other, step = Network(), tf.Variable(0)
    store = Store(str(folder), {"model": other}, {"global_step": step})
    assert store.restore() == prefix and int(step) == 7
    assert other.variables[0].numpy().min() == 2.0
    assert load_network(Network(), prefix) == 7
    assert "state/global_step/.ATTRIBUTES/VARIABLE_VALUE" in dict(reading.values(prefix))
    # A prefix of another program, and its state file.
    writing.export(str(folder / "tf" / f"w{name}"), {"model": by_name(network.variables)})
    os.remove(folder / "tf" / f"w{name}.manifest.json")
    text = name.replace("\\", "\\\\")
    (folder / "tf" / "checkpoint").write_text(f'model_checkpoint_path: "w{text}"\n')
    found = find.newest(str(folder / "tf"))
    assert found == str(folder / "tf" / f"w{name}")
    assert load_network(Network(), found) == -1


def test_links_to_a_checkpoint_go_with_its_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    prefix = make_store(tmp_path / "[a]", Network()).save(1)
    reader = reading.open_reader(prefix)
    assert [n for n in os.listdir(tmp_path) if n.startswith("tfseg-")]
    del reader
    assert os.listdir(tmp_path) == ["[a]"]
    (tmp_path / "[a]" / "model.ckpt-1.index").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="cannot be read") as caught:
        reading.open_reader(prefix)
    assert "tfseg-" not in str(caught.value)
    assert os.listdir(tmp_path) == ["[a]"]


def export(folder, *names):
    for name in names:
        writing.export(str(folder / name), {"model": by_name(Network().variables)})
        os.remove(folder / f"{name}.manifest.json")


def test_a_checkpoint_without_a_state_file_is_found(tmp_path, capsys):
    export(tmp_path, "model.ckpt-200", "model.ckpt-1000")
    assert find.newest(str(tmp_path)).endswith("model.ckpt-1000")
    assert "model.ckpt-1000" in capsys.readouterr().out
    find.newest(str(tmp_path))
    assert capsys.readouterr().out == ""
    # The state file of the place where it was made.
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt-1000"\n')
    assert find.newest(str(tmp_path)).endswith("model.ckpt-1000")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-200"\n')
    assert find.newest(str(tmp_path)).endswith("model.ckpt-200")


@pytest.mark.parametrize("names", [("a", "b"), ("a-1", "b-2"), ("a-1", "a"), ("a-1", "a-01")])
def test_several_checkpoints_of_which_none_is_the_newest(tmp_path, names):
    export(tmp_path, *names)
    with pytest.raises(UserError, match=f"(?s)which one to use.*{names[0]}"):
        find.newest(str(tmp_path))


def test_checkpoints_that_lack_files_are_not_taken(tmp_path):
    export(tmp_path, "model.ckpt-1", "model.ckpt-2")
    os.remove(tmp_path / "model.ckpt-2.data-00000-of-00001")
    (tmp_path / "model.ckpt-3.data-00001-of-00002").write_bytes(b"")
    assert find.incomplete(str(tmp_path)) == ["model.ckpt-2", "model.ckpt-3"]
    assert find.newest(str(tmp_path)).endswith("model.ckpt-1")


def test_loading_names_differing_class_counts(tmp_path):
    prefix = make_store(tmp_path, Network(classes=3)).save(5)
    with pytest.raises(UserError, match="different numbers of classes"):
        load_network(Network(classes=4), prefix)
    assert load_network(Network(fill=1.0), prefix) == 5


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


def test_tensorflow_says_nothing_of_other_state(tmp_path, caplog):
    Store(str(tmp_path), {"model": Network()}, {"old": tf.Variable(0.0)}).save(5)
    store = Store(str(tmp_path), {"model": Network()}, {"new": tf.Variable(0.0)})
    with pytest.raises(UserError, match="another kind of run"):
        store.restore()
    gc.collect()
    assert caplog.text == ""


def test_loading_a_named_network(tmp_path):
    folder = str(tmp_path)
    networks = {"model": Network(fill=1.0), "ema": Network(fill=2.0)}
    prefix = Store(folder, networks, {}).save(1)
    target = Network()
    load_network(target, prefix, "ema")
    assert target.variables[1].numpy().tolist() == [2.0, 2.0]
    with pytest.raises(UserError, match="ema, model"):
        load_network(target, prefix, "hybrid")


def test_the_first_network_is_the_one_to_use(tmp_path):
    networks = {"second": Network(fill=1.0), "first": Network(fill=2.0)}
    prefix = Store(str(tmp_path), networks, {}).save(1)
    assert deployable_network(prefix) == "second"
    target = Network()
    load_network(target, prefix)
    assert target.variables[1].numpy().tolist() == [1.0, 1.0]


def test_missing_and_unreadable_checkpoints(tmp_path):
    assert find.newest(str(tmp_path)) is None
    with pytest.raises(UserError, match="no such checkpoint"):
        find.newest(str(tmp_path / "model.ckpt-1"))
    (tmp_path / "model.ckpt-1.index").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        load_network(Network(), str(tmp_path / "model.ckpt-1"))


def test_a_checkpoint_can_be_moved(tmp_path):
    make_store(tmp_path / "a", Network(fill=4.0)).save(3)
    shutil.move(tmp_path / "a", tmp_path / "b")
    target = Network()
    load_network(target, find.newest(str(tmp_path / "b")))
    assert target.variables[1].numpy().tolist() == [4.0, 4.0]
    manifest = json.loads((tmp_path / "b" / "model.ckpt-3.manifest.json").read_text())
    assert set(manifest["files"]) == {"model.ckpt-3.index", "model.ckpt-3.data-00000-of-00001"}
