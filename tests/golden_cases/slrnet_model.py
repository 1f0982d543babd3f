"""Golden cases of SLRNet's network: blocks of WideResNet38, ASPP, factorisation, cue, gate.

Parameters that are too big for a file are drawn from a seed that it holds (`pgen_*`).
"""

import dataclasses

import numpy as np
import tensorflow as tf

from tests.golden_cases.lpl_model import assert_close, channels_last, fill, load, parameters_of
from tfseg.models.backbones.wide_resnet import WideBlock
from tfseg.models.heads.factorisation import (
    GlobalCueInjection,
    LowRank,
    StochasticGate,
    gate,
    initial_bases,
)
from tfseg.models.heads.parts import ASPP, head_settings
from tfseg.models.layers.settings import Settings
from tfseg.ops.two_views import largest_only, to_first_view
from tfseg.settings.network import ModelConfig
from tfseg.weights.torch_layout import slots

# Suggested by the files' description.
ABSOLUTE, RELATIVE = 2e-5, 1e-4


def assert_near(actual, expected: np.ndarray) -> None:
    """Compares arrays of the same layout."""
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=RELATIVE, atol=ABSOLUTE)


def assert_gradient(actual, expected: np.ndarray) -> None:
    """Compares gradients, relative to the largest entry."""
    limit = RELATIVE * max(np.abs(expected).max(), 1e-6)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=limit)


def channels_first(x) -> np.ndarray:
    """Turns [N, h, w, C] into [N, C, h, w]."""
    return np.asarray(x).transpose(0, 3, 1, 2)


def drawn_parameters(path: str) -> dict[str, np.ndarray]:
    """Returns the parameters that a case describes by seed, by PyTorch's names."""
    arrays, result = load(path), {}
    for key, value in arrays.items():
        if not key.startswith("pgen_"):
            continue
        name = key.removeprefix("pgen_")
        seed, kind, shift, scale = value
        random = np.random.RandomState(int(seed))
        draw = random.random_sample if kind else random.standard_normal
        values = shift + scale * draw(tuple(arrays[f"pshape_{name}"]))
        result[name.replace("__", ".")] = values.astype(np.float32)
    return result


# ASPP --------------------------------------------------------------------------------------------

# Our layer by the published module.
_ASPP_BRANCHES = {"aspp1": "aspp0", "aspp2": "aspp1", "aspp3": "aspp2", "aspp4": "aspp3"}


def _check_aspp(path: str, quantity: str) -> None:
    arrays, parameters = load(path), drawn_parameters(path)
    config = ModelConfig(
        output_stride=8,
        atrous_rates=(12, 24, 36),
        aspp_with_separable_conv=False,
        aspp_convs_filters=parameters["conv1.weight"].shape[0],
    )
    layer = ASPP(head_settings(Settings()), config, arrays["x"].shape[1])
    names = {"concat_projection": "conv1", "concat_projection/BatchNorm": "bn1"}
    names |= {"image_pooling": "global_avg_pool.1", "image_pooling/BatchNorm": "global_avg_pool.2"}
    for torch, ours in _ASPP_BRANCHES.items():
        names |= {ours: f"{torch}.atrous_conv", f"{ours}/BatchNorm": f"{torch}.bn"}
    places = slots(layer, names)
    # The published image pooling is the last part of the concatenation, ours the first.
    projection = places["conv1.weight"]
    places["conv1.weight"] = dataclasses.replace(projection, shift=projection.variable.shape[3])
    fill(places, parameters)
    output, _ = layer(channels_last(arrays["x"]))
    assert_near(channels_first(output), arrays[quantity])


# The factorisation -------------------------------------------------------------------------------

_CVLR_INPUTS = {
    "x1",
    "x2",
    "dict_logits",
    "transform1_weight",
    "transform1_bias",
    "transform2_weight",
    "transform2_bias",
    "num_iters",
    "temperature",
    "obj_w1",
    "obj_w2",
}


def _low_rank(arrays, channels: int, **options) -> LowRank:
    layer = LowRank(Settings(), channels, **options)
    for number, transform in enumerate(layer.transforms, start=1):
        transform.kernel.assign(arrays[f"transform{number}_weight"].T[None, None])
        transform.bias.assign(arrays[f"transform{number}_bias"])
    return layer


def _check_cvlr(path: str, quantity: str) -> None:
    arrays = load(path)
    first, second = channels_last(arrays["x1"]), channels_last(arrays["x2"])
    layer = _low_rank(
        arrays,
        first.shape[3],
        iterations=int(arrays["num_iters"]),
        temperature=float(arrays["temperature"]),
    )
    bases = initial_bases(channels_last(arrays["dict_logits"]), first)
    if quantity == "dict_init":
        return assert_near(tf.transpose(bases, [0, 2, 1]), arrays[quantity])
    if quantity.startswith("eval_"):
        (y,), (codes,), final = layer([first], bases)
        flat = channels_first(codes).reshape(arrays["eval_coding"].shape)
        values = {"eval_y": channels_first(y), "eval_coding": flat, "eval_dictionary": final}
        return assert_near(values[quantity], arrays[quantity])
    bases = tf.stop_gradient(bases)
    with tf.GradientTape() as tape:
        tape.watch([first, second])
        (y1, y2), (codes1, codes2), final = layer([first, second], bases)
        resized = to_first_view(codes2, codes1.shape[1:3])
        kept1, kept2 = largest_only(codes1), largest_only(resized)
        difference = tf.reduce_mean(tf.abs(kept1 - kept2))
        objective = tf.reduce_sum(y1 * channels_last(arrays["obj_w1"])) + 5.0 * difference
        objective += tf.reduce_sum(y2 * channels_last(arrays["obj_w2"]))
    values = {"code_reg_loss": difference, "obj_value": objective, "train_dictionary": final}
    maps = {
        "train_y1": y1,
        "train_y2": y2,
        "train_coding1": codes1,
        "train_coding2": codes2,
        "train_coding2_resized": resized,
        "onehot1": kept1,
        "onehot2": kept2,
    }
    values |= {name: channels_first(x) for name, x in maps.items()}
    if not quantity.startswith("grad_"):
        return assert_near(values[quantity], arrays[quantity])
    sources = {"grad_x1": first, "grad_x2": second}
    for number, transform in enumerate(layer.transforms, start=1):
        sources[f"grad_t{number}_weight"] = transform.kernel
        sources[f"grad_t{number}_bias"] = transform.bias
    gradient = tape.gradient(objective, sources[quantity])
    if quantity.endswith("weight"):
        gradient = tf.transpose(gradient[0, 0])
    elif gradient.shape.rank == 4:
        gradient = channels_first(gradient)
    return assert_gradient(gradient, arrays[quantity])


# Cue and gate ------------------------------------------------------------------------------------

_GCI_NAMES = {
    "global_cue/deep": "fc_deep.0",
    "global_cue/deep/BatchNorm": "fc_deep.1",
    "global_cue/shallow": "fc_skip.0",
    "global_cue/shallow/BatchNorm": "fc_skip.1",
    "global_cue/output": "fc_cls.0",
    "global_cue/output/BatchNorm": "fc_cls.1",
}


def _gci_outputs(path: str) -> list[str]:
    return [key for key in load(path) if key not in ("shallow", "deep") and key[0] != "p"]


def _check_gci(path: str, quantity: str) -> None:
    arrays = load(path)
    shallow, deep = channels_last(arrays["shallow"]), channels_last(arrays["deep"])
    settings = head_settings(Settings()).replace(decay=0.95)
    layer = GlobalCueInjection(settings, shallow.shape[3], deep.shape[3])
    places = slots(layer, _GCI_NAMES)
    fill(places, drawn_parameters(path))
    output = layer(shallow, deep, training=quantity != "out_eval")
    if quantity.startswith("out_"):
        assert_near(channels_first(output), arrays[quantity])
    else:
        name = quantity.removeprefix("after_").replace("__", ".")
        assert_near(places[name].variable, arrays[quantity])


def _check_gate(path: str, quantity: str) -> None:
    arrays = load(path)
    deep, shallow = channels_last(arrays["x1"]), channels_last(arrays["x2"])
    share = float(arrays["alpha"])
    if quantity == "out_eval":
        output = StochasticGate(share)(deep, shallow)
    else:
        keep = channels_last(arrays["keep_mask"]) > 0
        output = gate(deep, shallow, keep, share=share)
    assert_near(channels_first(output), arrays[quantity])


# Blocks of the backbone --------------------------------------------------------------------------


def _check(path: str, quantity: str) -> None:
    arrays, parameters = load(path), parameters_of(path)
    kernels = [
        parameters[name]
        for leaf in ("branch2a", "branch2b1", "branch2b2")
        if (name := f"conv_{leaf}.weight") in parameters
    ]
    rate = int(arrays["dilation"])
    if len(kernels) == 3:
        rates = (1, rate, 1)
    else:
        rates = (int(arrays["first_dilation"]), rate)
    layer = WideBlock(
        Settings(epsilon=1e-5),
        "block",
        arrays["x"].shape[1],
        tuple(kernel.shape[0] for kernel in kernels),
        kernel_sizes=tuple(kernel.shape[2] for kernel in kernels),
        stride=int(arrays["stride"]),
        rates=rates,
        project="conv_branch1.weight" in parameters,
    )
    modules = {name.rpartition(".")[0] for name in parameters}
    fill(slots(layer, {f"block/{name}": name for name in modules}), parameters)
    output, activated = layer(channels_last(arrays["x"]))
    assert_close({"y": output, "bn_relu": activated}[quantity], arrays[quantity])


def _outputs(path: str) -> list[str]:
    return ["y", "bn_relu"]


def _but(*inputs: str):
    """Returns a lister of all arrays but the inputs."""
    return lambda path: [key for key in load(path) if key not in inputs]


def _aspp_outputs(path: str) -> list[str]:
    return [key for key in load(path) if key != "x" and not key.startswith(("pgen_", "pshape_"))]


CASES = {
    "slrnet/resblock": (_outputs, _check),
    "slrnet/aspp": (_aspp_outputs, _check_aspp),
    "slrnet/cvlr": (_but(*_CVLR_INPUTS), _check_cvlr),
    "slrnet/gci": (_gci_outputs, _check_gci),
    "slrnet/sg": (_but("x1", "x2", "alpha", "keep_mask"), _check_gate),
}
