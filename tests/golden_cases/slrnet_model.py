"""Golden case `slrnet/resblock`: the blocks of WideResNet38, plain and bottleneck."""

from tests.golden_cases.lpl_model import assert_close, channels_last, fill, load, parameters_of
from tfseg.models.backbones.wide_resnet import WideBlock
from tfseg.models.layers import Settings
from tfseg.models.torch_layout import slots


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


CASES = {"slrnet/resblock": (_outputs, _check)}
