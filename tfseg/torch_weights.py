"""Makes a checkpoint of a PyTorch file, for --tf_initial_checkpoint.

python -m tfseg.torch_weights --weights=FILE --model_variant=resnet101s --output=PREFIX

The report says what matched, what is new and what of the file was not used. Exit code: 0 if the
checkpoint was written, 2 if not, with one message.
"""

import dataclasses

from tfseg import command_line
from tfseg.settings import flags
from tfseg.settings.option import Section, option


@dataclasses.dataclass(frozen=True)
class Settings(Section):
    """The program's flags."""

    weights: str | None = option(
        None, "File of torch.save (.pth, .pt, any name) or .safetensors file.", required=True
    )
    model_variant: str | None = option(
        None,
        "Backbone of the file: resnet50s, resnet101s, resnet101, resnet101_msra, wide_resnet38, "
        "efficientnet_lite0, or a dinov2_* of any spelling.",
        required=True,
    )
    entry: str | None = option(
        None,
        "Entry of a .pth file that holds the weights, such as model_ema of UniMatch V2's "
        "checkpoints; None: state_dict, model_state_dict, model or net, or the file itself.",
    )
    output: str | None = option(
        None, "Prefix of the checkpoint's files, such as weights/resnet101s.", required=True
    )


def main(argv: list[str]) -> None:
    """Converts the file that the flags name."""
    settings = flags.read(Settings)
    # Wrong flags are answered without TensorFlow.
    from tfseg.weights.torch_convert import convert

    print(
        convert(settings.weights, settings.model_variant, settings.output, settings.entry),
        flush=True,
    )


if __name__ == "__main__":
    flags.define(Settings)
    command_line.run(main)
