"""PyTorch state dictionaries of ResNets: by command into a checkpoint, and straight into a run."""

import dataclasses
import functools

import ml_dtypes
import numpy as np
import pytest

from tests.programs import run
from tests.torch_files import op_global, op_text, op_tuple, write_torch
from tfseg.errors import UserError
from tfseg.models import build_model
from tfseg.settings.network import ModelConfig
from tfseg.weights.checkpoint.names import by_name
from tfseg.weights.initial import load_initial_weights
from tfseg.weights.pretrained import load_pretrained
from tfseg.weights.torch_initial import load_torch
from tfseg.weights.prefix import outer_prefix
from tfseg.weights.torch_convert import _describe, convert

_UNITS = {"resnet50s": (3, 4, 6, 3), "resnet101s": (3, 4, 23, 3)}
_NORM = ("weight", "bias", "running_mean", "running_var")
# Convolutions with batch norm: 3 in the stem, 3 in each of 16 units, 4 projections.
_VARIABLES_50 = 55 * 5
HEAD_CLASSES = 4


def _norm(name, channels):
    return {**{f"{name}.{leaf}": (channels,) for leaf in _NORM}, f"{name}.num_batches_tracked": ()}


def _unit(name, convolution, norm, shape):
    return {f"{name}{convolution}.weight": shape, **_norm(f"{name}{norm}", shape[0])}


def _resnet_shapes(variant):
    """Names and shapes of the state dictionary, classifier included, as the collection has them."""
    shapes = _unit("", "conv1.0", "conv1.1", (64, 3, 3, 3))
    shapes |= _unit("", "conv1.3", "conv1.4", (64, 64, 3, 3))
    shapes |= _unit("", "conv1.6", "bn1", (128, 64, 3, 3))
    channels = 128
    for i, (count, width) in enumerate(zip(_UNITS[variant], (64, 128, 256, 512)), start=1):
        for j in range(count):
            unit = f"layer{i}.{j}."
            shapes |= _unit(unit, "conv1", "bn1", (width, channels, 1, 1))
            shapes |= _unit(unit, "conv2", "bn2", (width, width, 3, 3))
            shapes |= _unit(unit, "conv3", "bn3", (4 * width, width, 1, 1))
            if j == 0:
                shapes |= _unit(unit, "downsample.0", "downsample.1", (4 * width, channels, 1, 1))
            channels = 4 * width
    return {**shapes, "fc.weight": (10, 2048), "fc.bias": (10,)}


def _head_shapes(filters=5, decoder_filters=6):
    shapes = {}
    for i, size in enumerate((1, 3, 3, 3), start=1):
        branch = f"aspp.branch{i}."
        shapes |= _unit(branch, "0", "1", (filters, 2048, size, size))
    shapes |= _unit("aspp.", "branch5_conv", "branch5_bn", (filters, 2048, 1, 1))
    shapes |= _unit("aspp.", "conv_cat.0", "conv_cat.1", (filters, 5 * filters, 1, 1))
    shapes |= _unit("", "shortcut_conv.0", "shortcut_conv.1", (48, 256, 3, 3))
    shapes |= _unit("", "cat_conv.0", "cat_conv.1", (decoder_filters, filters + 48, 3, 3))
    shapes |= _unit("", "cat_conv.3", "cat_conv.4", (decoder_filters, decoder_filters, 3, 3))
    shapes["cls_conv.weight"] = (HEAD_CLASSES, decoder_filters, 1, 1)
    return {**shapes, "cls_conv.bias": (HEAD_CLASSES,)}


def _filled(shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        name: np.array(7, np.int64)
        if name.endswith("num_batches_tracked")
        else rng.standard_normal(shape, np.float32).astype(dtype)
        for name, shape in shapes.items()
    }


@functools.lru_cache
def _resnet(variant):
    return _filled(_resnet_shapes(variant))


@functools.lru_cache
def _model(variant):
    return build_model(
        ModelConfig(model_variant=variant),
        num_classes=3,
        num_image_classes=2,
        crop_size=(33, 33),
    )


def _prefixed(prefix, arrays):
    return {prefix + name: array for name, array in arrays.items()}


def _assert_placed(variables, variant, arrays):
    """Compares a layer of every kind with the tensors that belong there."""

    def same(ours, theirs, axes=None):
        expected = np.asarray(arrays[theirs], np.float32)
        expected = expected if axes is None else expected.transpose(axes)
        np.testing.assert_array_equal(variables[f"{variant}/{ours}"], expected, err_msg=ours)

    kernel = (2, 3, 1, 0)
    for i, stem in enumerate(("conv1.0", "conv1.3", "conv1.6"), start=1):
        same(f"conv1_{i}/weights", f"{stem}.weight", kernel)
    for i, norm in enumerate(("conv1.1", "conv1.4", "bn1"), start=1):
        same(f"conv1_{i}/BatchNorm/gamma", f"{norm}.weight")
    last = _UNITS[variant][2]
    for ours, theirs in (
        ("layer1/unit_1", "layer1.0"),
        (f"layer3/unit_{last}", f"layer3.{last - 1}"),
    ):
        for i in (1, 2, 3):
            same(f"{ours}/conv{i}/weights", f"{theirs}.conv{i}.weight", kernel)
            same(f"{ours}/conv{i}/BatchNorm/gamma", f"{theirs}.bn{i}.weight")
            same(f"{ours}/conv{i}/BatchNorm/beta", f"{theirs}.bn{i}.bias")
            same(f"{ours}/conv{i}/BatchNorm/moving_mean", f"{theirs}.bn{i}.running_mean")
            same(f"{ours}/conv{i}/BatchNorm/moving_variance", f"{theirs}.bn{i}.running_var")
    same("layer4/unit_1/shortcut/weights", "layer4.0.downsample.0.weight", kernel)
    same("layer4/unit_1/shortcut/BatchNorm/moving_mean", "layer4.0.downsample.1.running_mean")


# The command ------------------------------------------------------------------------------------


def test_command_writes_a_checkpoint_that_training_starts_from(tmp_path):
    path, output = tmp_path / "weights.pth", tmp_path / "made" / "resnet50s"
    arrays = _resnet("resnet50s")
    call = op_global("os", "system") + op_tuple(op_text(f"touch {tmp_path}/executed")) + b"R"
    write_torch(path, arrays, legacy=False, extra=op_text("evil") + call)
    flags = [f"--weights={path}", "--model_variant=resnet50s", f"--output={output}"]
    text = run("-m", "tfseg.torch_weights", *flags).stdout
    assert not (tmp_path / "executed").exists()
    total = f"{_VARIABLES_50} of {_VARIABLES_50} variables from {path}"
    assert text.startswith(f"initial weights: {total}\n")
    assert "  2 in the checkpoint, not in this network: fc.bias, fc.weight\n" in text
    assert "  55 entries that are not model variables" in text
    assert f"--tf_initial_checkpoint={output} --model_variant=resnet50s" in text
    model = _model("resnet50s")
    coverage = load_initial_weights(
        model, str(output), initialize_last_layer=False, last_layers_contain_logits_only=False
    )
    assert set(coverage.matched) == set(by_name(model.backbone.variables))
    assert not coverage.unused
    _assert_placed(by_name(model.variables), "resnet50s", arrays)
    with pytest.raises(UserError, match="--model_variant=resnet50s, or a checkpoint of resnet101s"):
        load_initial_weights(
            _model("resnet101s"),
            str(output),
            initialize_last_layer=False,
            last_layers_contain_logits_only=False,
        )


def test_command_explains_mistakes_and_writes_nothing(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"no weights at all")
    output = tmp_path / "made" / "resnet50s"
    flags = ["--model_variant=resnet50s", f"--output={output}"]
    for words, message in (
        ([f"--weights={tmp_path}/weights.pth", *flags], "cannot be read as PyTorch weights"),
        (flags, "--weights is required"),
    ):
        result = run("-m", "tfseg.torch_weights", *words, check=False)
        assert result.returncode == 2
        assert message in result.stderr and "Traceback" not in result.stderr
    assert not output.parent.exists()


def test_output_is_a_prefix_and_backbones_have_names(tmp_path):
    path = str(tmp_path / "weights.pth")
    write_torch(path, {"w": np.zeros(3, np.float32)}, legacy=False)
    with pytest.raises(UserError, match="xception_65"):
        convert(path, "resnet50", str(tmp_path / "out"))
    with pytest.raises(UserError, match="no PyTorch original(.|\n)*resnet101s, resnet50s"):
        convert(path, "mobilenet_v2", str(tmp_path / "out"))
    arrays = _resnet("resnet50s")
    write_torch(path, arrays, legacy=True)
    with pytest.raises(UserError, match=r"not a folder(.|\n)*model\.ckpt"):
        convert(path, "resnet50s", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize("legacy", [True, False])
def test_network_of_learning_pseudo_labels_with_its_head(tmp_path, legacy):
    backbone = _prefixed("module.backbone.", _resnet("resnet50s"))
    head = _prefixed("module.", _filled(_head_shapes()))
    path, output = str(tmp_path / "weights.pth"), str(tmp_path / "lpl")
    write_torch(path, {**backbone, **head}, legacy=legacy, nested="state_dict")
    text = convert(path, "resnet50s", output)
    # Nine convolutions with batch norm in the head, and the logits.
    count = _VARIABLES_50 + 9 * 5 + 2
    assert text.startswith(f"initial weights: {count} of {count} variables")
    assert "new layers" not in text
    for word in (
        "--output_stride=8 --atrous_rates=6 --atrous_rates=12 --atrous_rates=18",
        "--aspp_with_separable_conv=false --aspp_convs_filters=5",
        "--decoder_output_stride=4 --decoder_use_separable_conv=false --decoder_filters=6",
        "--decoder_projection_kernel_size=3 --initialize_last_layer",
    ):
        assert word in text
    model = build_model(
        ModelConfig(
            model_variant="resnet50s",
            output_stride=8,
            atrous_rates=(6, 12, 18),
            aspp_with_separable_conv=False,
            aspp_convs_filters=5,
            decoder_output_stride=(4,),
            decoder_use_separable_conv=False,
            decoder_filters=6,
            decoder_projection_kernel_size=3,
        ),
        num_classes=HEAD_CLASSES,
        num_image_classes=2,
        crop_size=(33, 33),
    )
    coverage = load_initial_weights(
        model, output, initialize_last_layer=True, last_layers_contain_logits_only=True
    )
    assert len(coverage.matched) == count and not coverage.missing and not coverage.unused
    variables = by_name(model.variables)
    _assert_placed(variables, "resnet50s", _resnet("resnet50s"))
    projection = head["module.aspp.conv_cat.0.weight"][:, :, 0, 0].T
    # The image pooling's five channels are the last of theirs and the first of ours.
    ours = variables["concat_projection/weights"].numpy()[0, 0]
    np.testing.assert_array_equal(ours[:5], projection[-5:])
    np.testing.assert_array_equal(ours[5:], projection[:-5])
    np.testing.assert_array_equal(
        variables["image_pooling/BatchNorm/moving_mean"],
        head["module.aspp.branch5_bn.running_mean"],
    )
    np.testing.assert_array_equal(
        variables["decoder/decoder_conv1/weights"],
        head["module.cat_conv.3.weight"].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(variables["logits/semantic/biases"], head["module.cls_conv.bias"])


def test_part_of_a_head_is_taken_and_the_rest_is_new(tmp_path):
    head = _filled(_head_shapes())
    part = {name: array for name, array in head.items() if not name.startswith("cls_conv")}
    path = str(tmp_path / "weights.pth")
    write_torch(path, {**_prefixed("backbone.", _resnet("resnet50s")), **part}, legacy=False)
    text = convert(path, "resnet50s", str(tmp_path / "lpl"))
    count = _VARIABLES_50 + 9 * 5
    assert text.startswith(f"initial weights: {count} of {count + 2} variables")
    assert "2 new layers, not in the checkpoint: logits/semantic/biases, logits/semantic" in text
    coverage = load_initial_weights(
        _model("resnet50s"),
        str(tmp_path / "lpl"),
        initialize_last_layer=False,
        last_layers_contain_logits_only=False,
    )
    assert not any("logits" in name for name in (*coverage.matched, *coverage.excluded))


def _wide_shapes():
    """Names and shapes of WideResNet38's state dictionary."""
    shapes = {"conv1a.weight": (64, 3, 3, 3)}

    def block(name, channels, widths, sizes, project):
        for leaf, width, size in zip(("2a", "2b1", "2b2"), widths, sizes):
            shapes.update(_norm(f"{name}.bn_branch{leaf}", channels))
            shapes[f"{name}.conv_branch{leaf}.weight"] = (width, channels, size, size)
            channels = width
        if project:
            shapes[f"{name}.conv_branch1.weight"] = (widths[-1], project, 1, 1)

    channels = 64
    for first, inner, filters, count in (
        ("b2", 128, 128, 3),
        ("b3", 256, 256, 3),
        ("b4", 512, 512, 6),
        ("b5", 512, 1024, 3),
    ):
        block(first, channels, (inner, filters), (3, 3), channels)
        for i in range(1, count):
            block(f"{first}_{i}", filters, (inner, filters), (3, 3), None)
        channels = filters
    block("b6", 1024, (512, 1024, 2048), (1, 3, 1), 1024)
    block("b7", 2048, (1024, 2048, 4096), (1, 3, 1), 2048)
    return {**shapes, **_norm("bn7", 4096), "linear1000.weight": (10, 4096)}


def test_wide_resnet_takes_every_tensor_by_its_name():
    shapes = _wide_shapes()
    # A constant of its own for each: the order of axes is checked by the golden cases.
    arrays = {
        f"module.backbone.{name}": np.broadcast_to(np.float32(i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
    model = _model("wide_resnet38")
    coverage = _load("wide_resnet38", arrays)
    variables = by_name(model.backbone.variables)
    assert set(coverage.matched) == set(variables)
    assert coverage.unused == ("module.backbone.linear1000.weight",)
    leaves = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
    leaves |= {"moving_variance": "running_var", "weights": "weight"}
    for name, variable in variables.items():
        *scope, leaf = name.removeprefix("wide_resnet38/").split("/")
        tensor = arrays[".".join(["module.backbone", *scope, leaves[leaf]])]
        assert np.ptp(variable.numpy()) == 0 and variable.numpy().flat[0] == tensor.flat[0], name
    with pytest.raises(UserError, match="--model_variant=wide_resnet38, or"):
        _load("resnet50s", arrays)


def _constants(shapes):
    """A constant of its own for each tensor, in little memory."""
    return {
        name: np.broadcast_to(np.float32(i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


def _torchvision_shapes():
    """Names and shapes of torchvision's ResNet 101."""
    old = ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1", "layer1.0.")
    shapes = {n: s for n, s in _resnet_shapes("resnet101s").items() if not n.startswith(old)}
    stem = _unit("", "conv1", "bn1", (64, 3, 7, 7))
    for i, (convolution, shape) in enumerate(
        {"conv1": (64, 64, 1, 1), "conv2": (64, 64, 3, 3), "conv3": (256, 64, 1, 1)}.items(), 1
    ):
        stem |= _unit("layer1.0.", convolution, f"bn{i}", shape)
    stem |= _unit("layer1.0.", "downsample.0", "downsample.1", (256, 64, 1, 1))
    return {**stem, **shapes}


def _msra_shapes():
    """Names and shapes of the PyTorch port of the Caffe model."""
    shapes, channels = _unit("layer1.conv1.", "conv", "bn", (64, 3, 7, 7)), 64
    for layer, (count, width) in enumerate(zip((3, 4, 23, 3), (64, 128, 256, 512)), start=2):
        for block in range(1, count + 1):
            unit = f"layer{layer}.block{block}."
            parts = {
                "reduce": (width, channels, 1, 1),
                "conv3x3": (width, width, 3, 3),
                "increase": (4 * width, width, 1, 1),
            }
            if block == 1:
                parts["shortcut"] = (4 * width, channels, 1, 1)
            for part, shape in parts.items():
                shapes |= _unit(f"{unit}{part}.", "conv", "bn", shape)
            channels = 4 * width
    return shapes


_TORCH_RESNETS = {"resnet101": _torchvision_shapes, "resnet101_msra": _msra_shapes}


@pytest.mark.parametrize("variant", _TORCH_RESNETS)
def test_resnets_with_a_large_stem_take_every_tensor(variant):
    shapes = _TORCH_RESNETS[variant]()
    head = {"aspp.c0.weight": (3, 9, 3, 3)}
    arrays = _constants({**shapes, **head})
    first = next(iter(arrays))
    arrays[first] = np.random.default_rng(0).normal(size=shapes[first]).astype(np.float32)
    coverage = _load(variant, _prefixed("module.base.", arrays))
    variables = by_name(_model(variant).backbone.variables)
    assert set(coverage.matched) == set(variables)
    assert {name for name in coverage.unused if ".fc." not in name} == {
        "module.base.aspp.c0.weight"
    }
    kernel = arrays[first].transpose(2, 3, 1, 0)
    # Blue comes first in the Caffe model; here red does.
    turned = kernel[:, :, ::-1] if variant == "resnet101_msra" else kernel
    np.testing.assert_array_equal(variables[f"{variant}/conv1/weights"], turned)
    msra = variant == "resnet101_msra"
    for ours, theirs in (
        ("layer1/unit_1/conv1/weights", ("layer1.0.conv1.", "layer2.block1.reduce.conv.")),
        ("layer3/unit_23/conv2/weights", ("layer3.22.conv2.", "layer4.block23.conv3x3.conv.")),
        ("layer4/unit_3/conv3/weights", ("layer4.2.conv3.", "layer5.block3.increase.conv.")),
        (
            "layer2/unit_1/shortcut/weights",
            ("layer2.0.downsample.0.", "layer3.block1.shortcut.conv."),
        ),
        ("layer4/unit_1/conv2/BatchNorm/gamma", ("layer4.0.bn2.", "layer5.block1.conv3x3.bn.")),
    ):
        value = arrays[theirs[msra] + "weight"].flat[0]
        assert (variables[f"{variant}/{ours}"].numpy() == value).all(), ours
    for other in {"resnet101s", *_TORCH_RESNETS} - {variant}:
        with pytest.raises(UserError, match=f"--model_variant={variant}, or a file of {other}"):
            _load(other, arrays)


def test_network_of_spnet_with_its_projection():
    head = {}
    for i in range(4):
        head |= {f"aspp.c{i}.weight": (5, 2048, 3, 3), f"aspp.c{i}.bias": (5,)}
    # (Large: neither written to disk nor filled.)
    arrays = _prefixed("module.base.", {**_constants(_msra_shapes()), **_filled(head)})
    config, _, width, has_head = _describe("resnet101_msra", arrays)
    assert has_head and width == 5
    model = build_model(
        dataclasses.replace(config, head="projection"),
        num_classes=3,
        num_image_classes=2,
        crop_size=(33, 33),
        class_vectors=np.ones([3, 5]),
    )
    coverage = load_torch(model, arrays, source="checkpoint_final.pth.tar", with_head=True)
    assert coverage.missing == ("class_vectors",) and not coverage.unused
    variables, part = by_name(model.variables), "module.base.aspp.c"
    np.testing.assert_array_equal(
        variables["logits/semantic_2/weights"], arrays[f"{part}2.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(variables["logits/semantic/biases"], arrays[f"{part}0.bias"])
    assert [c._rate for c in model.logits_layer.convolutions] == [6, 12, 18, 24]


# Names and shapes -------------------------------------------------------------------------------


def _load(variant, arrays):
    return load_torch(_model(variant), arrays, source="weights.pth", with_head=False)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "encoder.net."])
def test_prefix_is_found(prefix):
    names = {prefix + name for name in _resnet_shapes("resnet50s")} | {"aspp.conv1.0.weight"}
    assert outer_prefix(names, _resnet_shapes("resnet50s"), joint=".") == prefix


def test_second_copies_are_ignored():
    arrays = _resnet("resnet50s")
    copies = {
        "newly_added.0.weight": np.zeros(3, np.float32),
        "module.newly_added.3.conv1.0.weight": np.zeros([64, 3, 3, 3], np.float32),
    }
    coverage = _load("resnet50s", {**arrays, **copies})
    assert len(coverage.matched) == _VARIABLES_50
    assert set(coverage.unused) == {"fc.weight", "fc.bias"}
    assert coverage.not_model == 55 + 2
    _assert_placed(by_name(_model("resnet50s").variables), "resnet50s", arrays)


@pytest.mark.parametrize("of, into", [("resnet50s", "resnet101s"), ("resnet101s", "resnet50s")])
def test_weights_of_the_other_depth_are_refused(of, into):
    before = [v.numpy() for v in _model(into).backbone.variables[::20]]
    with pytest.raises(UserError, match=rf"layer3\.\d+\.(.|\n)*--model_variant={of}, or"):
        _load(into, _prefixed("module.", _resnet(of)))
    for variable, value in zip(_model(into).backbone.variables[::20], before):
        np.testing.assert_array_equal(variable, value)


def test_shapes_that_do_not_fit_are_named_in_the_order_of_the_file():
    before = _model("resnet50s").backbone.variables[0].numpy()
    arrays = {**_resnet("resnet50s"), "layer2.0.conv1.weight": np.zeros([100, 256, 1, 1])}
    with pytest.raises(
        UserError, match=r"layer2.0.conv1.weight(.|\n)*\[100, 256, 1, 1\](.|\n)*\[128, 256, 1, 1\]"
    ):
        _load("resnet50s", arrays)
    with pytest.raises(UserError, match=r"bn1.bias(.|\n)*shape \[2, 64\](.|\n)*shape \[128\]"):
        _load("resnet50s", {**_resnet("resnet50s"), "bn1.bias": np.zeros([2, 64])})
    with pytest.raises(UserError, match="not finite(.|\n)*bn1.bias"):
        _load("resnet50s", {**_resnet("resnet50s"), "bn1.bias": np.full([128], np.nan)})
    plain = {n: a for n, a in _resnet("resnet50s").items() if not n.startswith("conv1.")}
    plain["conv1.weight"] = np.zeros([64, 3, 7, 7])
    with pytest.raises(UserError, match=r"no such tensor; the file has bn1.bias"):
        _load("resnet50s", plain)
    np.testing.assert_array_equal(_model("resnet50s").backbone.variables[0], before)


# --pretrained_weights ---------------------------------------------------------------------------


def test_pretrained_weights_take_the_backbone_of_a_file(tmp_path):
    path = str(tmp_path / "weights.pth.tar")
    arrays = {n: a.astype(ml_dtypes.bfloat16) for n, a in _resnet("resnet50s").items() if a.ndim}
    head = _filled(_head_shapes())
    write_torch(path, {**_prefixed("backbone.", arrays), **head}, legacy=True, nested="model")
    model = _model("resnet50s")
    logits = model.logits_layer.convolutions[0].kernel.numpy()
    coverage = load_pretrained(model, path)
    assert set(coverage.matched) == set(by_name(model.backbone.variables))
    assert set(coverage.missing) == set(by_name(model.variables)) - set(coverage.matched)
    assert {"backbone.fc.bias", "aspp.conv_cat.0.weight"} <= set(coverage.unused)
    _assert_placed(by_name(model.variables), "resnet50s", arrays)
    np.testing.assert_array_equal(model.logits_layer.convolutions[0].kernel, logits)


def test_package_and_keras_files_are_for_one_backbone():
    for source in ("imagenet", "weights.npz"):
        with pytest.raises(UserError, match=r"for efficientnet_lite0(.|\n)*resnet101s"):
            load_pretrained(_model("resnet50s"), source)
    with pytest.raises(UserError, match=r"Unknown kind(.|\n)*\.safetensors"):
        load_pretrained(_model("resnet50s"), "weights.h5")
