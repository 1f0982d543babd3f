"""Settings of `export.py`, and the formats with settings of their own."""

import dataclasses
from typing import Any, ClassVar

from tfseg.settings.option import Choice, Section, option, owned

QUANTIZATIONS = ("none", "float16", "dynamic", "int8")


@dataclasses.dataclass(frozen=True)
class FormatSettings(Section):
    """A format without settings of its own."""

    GROUP: ClassVar[str] = "export"


@dataclasses.dataclass(frozen=True)
class TFLiteSettings(FormatSettings):
    """A format for one size of images, whose numbers may be smaller than float32."""

    size: tuple[int, ...] | None = option(
        None, "Height,width in pixels of the images it takes; None: the run's --train_crop_size."
    )
    tflite_quantization: str = option(
        "none",
        "Numbers of the file. none: float32. float16: weights of 16 bits. dynamic: weights of 8 "
        "bits. int8: weights and features of 8 bits, in all layers where accuracy allows it.",
        choices=QUANTIZATIONS,
    )
    calibration_split: str = option(
        "train",
        "Split whose images show the ranges of the features to --tflite_quantization=int8.",
        needs="tflite_quantization=int8",
    )
    calibration_images: int = option(
        100,
        "Number of images of --calibration_split, evenly over the split; 0: all.",
        limits=(0, None),
        needs="tflite_quantization=int8",
    )
    int8_agreement: float = option(
        0.97,
        "Share of the calibration images' pixels on which --tflite_quantization=int8 must agree "
        "with the network. Layers stay in float32 until it does, the most harmful ones first.",
        limits=(0, 1),
        needs="tflite_quantization=int8",
    )


FORMATS = {
    "savedmodel": Choice(FormatSettings, "tfseg.exporting.savedmodel"),
    "tflite": Choice(TFLiteSettings, "tfseg.exporting.tflite"),
    "onnx": Choice(FormatSettings, "tfseg.exporting.onnx"),
}


@dataclasses.dataclass(frozen=True)
class ExportConfig(Section):
    """Which checkpoint becomes a file of which format, where, and with what it is compared."""

    GROUP: ClassVar[str] = "export"

    checkpoint_dir: str | None = option(
        None, "Training directory (newest checkpoint) or a checkpoint prefix.", required=True
    )
    output: str | None = option(
        None, "New folder for the file, its model card and its metadata.", required=True
    )
    format: str = option(
        "savedmodel",
        "savedmodel and onnx take images of any size; tflite takes one --size. onnx needs the "
        "extra [onnx].",
        choices=tuple(FORMATS),
    )
    network: str | None = option(
        None,
        "Which network of the checkpoint: ema, or hybrid or pseudo (of learning_pseudo_labels). "
        "None: the trained network itself; for learning_pseudo_labels hybrid.",
    )
    dataset_dir: str | None = option(
        None,
        "Records on which the file is compared with the checkpoint; None: those of the run, or "
        "made-up images if these are gone.",
        remote=True,
    )
    compare_split: str = option("val", "Split of the comparison.")
    compare_images: int = option(
        20, "Images of the comparison, evenly over the split; 0: all.", limits=(0, None)
    )
    format_settings: Any = owned("format", FORMATS)
