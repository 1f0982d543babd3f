"""The table of exports: one run in every format, compared with its checkpoint on the same images.

python benchmarks/exports.py --run=run --records=records --size=257,257 --images=100
"""

import argparse
import os
import tempfile

import tfseg  # Selects Keras 2 before TensorFlow is imported.

VARIANTS = (
    ("SavedModel", "savedmodel", None),
    ("ONNX", "onnx", None),
    ("TFLite, float32", "tflite", "none"),
    ("TFLite, float16", "tflite", "float16"),
    ("TFLite, dynamic", "tflite", "dynamic"),
    ("TFLite, int8", "tflite", "int8"),
    ("TFLite, int8, --int8_agreement=0", "tflite", "int8"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="training directory or checkpoint prefix")
    parser.add_argument("--records", required=True, help="folder of its records")
    parser.add_argument("--split", default="val")
    parser.add_argument("--calibration_split", default="train")
    parser.add_argument("--images", type=int, default=100, help="of the split; 0: all")
    parser.add_argument("--size", default="257,257", help="height,width of TFLite's images")
    arguments = parser.parse_args()
    shared = {
        "dataset_dir": arguments.records,
        "compare_split": arguments.split,
        "compare_images": arguments.images,
    }
    rows = []
    for name, file_format, quantization in VARIANTS:
        settings = dict(shared, format=file_format)
        if quantization is not None:
            size = [int(side) for side in arguments.size.split(",")]
            settings |= {"size": size, "tflite_quantization": quantization}
        if quantization == "int8":
            settings |= {"calibration_split": arguments.calibration_split}
        if name.endswith("=0"):
            settings |= {"int8_agreement": 0.0}
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = tfseg.export(arguments.run, os.path.join(folder, "out"), **settings)
            except tfseg.UserError as error:
                rows.append((name, " ".join(str(error).split())))
                continue
        if not rows:
            rows.append(("checkpoint", *row_of(found, "checkpoint_", equal=1.0)))
        rows.append((name, *row_of(found, "", equal=found["comparison"]["equal_pixels"])))
    print("\n| | MB | ms an image | equal pixels | mIoU | layers in float32 |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def row_of(found: dict, prefix: str, *, equal: float) -> tuple[str, ...]:
    """Returns the cells of the checkpoint or of the file."""
    compared = found["comparison"]
    layers = found.get("float_layers") if not prefix else None
    return (
        f"{found[f'{prefix}bytes'] / 1e6:.2f}",
        f"{compared[f'{prefix}milliseconds']:.0f}",
        f"{equal:.6f}",
        f"{compared[f'{prefix}miou']:.4f}",
        "-" if layers is None else str(len(layers)),
    )


if __name__ == "__main__":
    main()
