"""Golden cases `lpl/bottleneck`, `lpl/aspp` and `lpl/decoder`: parts of the networks.

Parameters and features are PyTorch's: channels first, and tensors by module name. They are placed
by `tfseg.models.torch_layout`, as the converter does. Case modules of other networks that come from
PyTorch use the helpers too.
"""

import functools

import numpy as np
import tensorflow as tf

from tfseg.models.backbones.resnet import Bottleneck
from tfseg.models.backbones.resnet_s import bottleneck_names
from tfseg.models.heads.parts import ASPP, DecoderStage, Logits, head_settings
from tfseg.models.layers.settings import Settings
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.network import ModelConfig
from tfseg.weights.torch_layout import Slot, aspp_slots, head_slots, slots

# Ten times the difference between the published code and an independent computation (1.8e-6 of
# values up to 1.4, 9.2e-7 of values up to 6.1), relative to the largest value.
TOLERANCE = 1.3e-5
_PARAMETER = "param_"


@functools.lru_cache(maxsize=4)
def load(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a case."""
    with np.load(path) as arrays:
        return dict(arrays)


def parameters_of(path: str) -> dict[str, np.ndarray]:
    """Returns the parameters of a case by PyTorch's names."""
    return {
        key.removeprefix(_PARAMETER).replace("__", "."): value
        for key, value in load(path).items()
        if key.startswith(_PARAMETER)
    }


def fill(places: dict[str, Slot], parameters: dict[str, np.ndarray]) -> None:
    """Gives every variable its tensor; none may be left over."""
    assert set(places) == set(parameters)
    for name, slot in places.items():
        slot.variable.assign(slot.arrange(parameters[name]))


def channels_last(array: np.ndarray) -> tf.Tensor:
    """Turns [N, C, h, w] into [N, h, w, C]."""
    return tf.constant(array.transpose(0, 2, 3, 1))


def assert_close(actual: tf.Tensor, expected: np.ndarray) -> None:
    """Compares [N, h, w, C] with the file's [N, C, h, w], relative to the largest value."""
    actual = np.asarray(actual).transpose(0, 3, 1, 2)
    assert actual.shape == expected.shape
    limit = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def _check_bottleneck(path: str, quantity: str) -> None:
    arrays, parameters = load(path), parameters_of(path)
    layer = Bottleneck(
        Settings(epsilon=1e-5),
        "unit",
        arrays["x"].shape[1],
        parameters["conv1.weight"].shape[0],
        stride=int(arrays["stride"]),
        rate=int(arrays["dilation"]),
        bounded=False,
    )
    fill(slots(layer, bottleneck_names("unit", "")), parameters)
    output, _ = layer(channels_last(arrays["x"]))
    assert_close(output, arrays[quantity])


def _head_config(parameters: dict[str, np.ndarray], aspp: str) -> ModelConfig:
    """Returns the published head in the widths of the parameters."""
    sizes = {"aspp_convs_filters": parameters[f"{aspp}branch1.0.weight"].shape[0]}
    if "cat_conv.0.weight" in parameters:
        sizes["decoder_filters"] = parameters["cat_conv.0.weight"].shape[0]
        sizes["decoder_projection_kernel_size"] = parameters["shortcut_conv.0.weight"].shape[2]
    return ModelConfig(
        output_stride=8,
        atrous_rates=(6, 12, 18),
        aspp_with_separable_conv=False,
        decoder_output_stride=(4,),
        decoder_use_separable_conv=False,
        **sizes,
    )


def _check_aspp(path: str, quantity: str) -> None:
    arrays, parameters = load(path), parameters_of(path)
    config = _head_config(parameters, "")
    layer = ASPP(head_settings(Settings()), config, arrays["x"].shape[1])
    fill(aspp_slots(layer), parameters)
    output, _ = layer(channels_last(arrays["x"]))
    assert_close(output, arrays[quantity])


class _Head(tf.Module):
    """ASPP, decoder and logits as `DeepLab` puts them together, in any widths."""

    def __init__(self, parameters, low_level_channels, in_channels):
        super().__init__()
        config, settings = _head_config(parameters, "aspp."), head_settings(Settings())
        self.aspp = ASPP(settings, config, in_channels)
        self.decoder = DecoderStage(
            settings,
            config,
            self.aspp.out_channels,
            low_level_channels,
            suffix="",
            num_logits=None,
            projection_filters=parameters["shortcut_conv.0.weight"].shape[0],
        )
        num_classes = parameters["cls_conv.weight"].shape[0]
        self.logits = Logits(settings, config, self.decoder.out_channels, num_classes)

    def __call__(self, low_level, features):
        x, _ = self.aspp(features)
        x, _ = self.decoder(x, low_level)
        return self.logits(x)


def _check_decoder(path: str, quantity: str) -> None:
    arrays, parameters = load(path), parameters_of(path)
    head = _Head(parameters, arrays["l1"].shape[1], arrays["l4"].shape[1])
    fill(head_slots(head), parameters)
    logits = head(channels_last(arrays["l1"]), channels_last(arrays["l4"]))
    assert_close(resize_bilinear(logits, [int(n) for n in arrays["out_hw"]]), arrays[quantity])


def _output(path: str) -> list[str]:
    return ["y"]


CASES = {
    "lpl/bottleneck": (_output, _check_bottleneck),
    "lpl/aspp": (_output, _check_aspp),
    "lpl/decoder": (_output, _check_decoder),
}
