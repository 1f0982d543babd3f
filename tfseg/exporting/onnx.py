"""ONNX, for images of any size: the format of onnxruntime and many others.

Resizing with aligned corners is two matrix products here. tf2onnx makes a Resize of it whose result
is off by one pixel where the size is not known in advance (7 to 24 in place of 25).
"""

import json
from typing import Any

import numpy as np

from tfseg.errors import UserError
from tfseg.exporting.comparison import Limits, Segment
from tfseg.exporting.precision import require_float32
from tfseg.exporting.serving import IMAGE, LABELS, PROBABILITIES
from tfseg.exporting.task import Task
from tfseg.ops.resize import MATRICES, bilinear_by
from tfseg.settings.export import FormatSettings

FILE, TAKES_ONE_SIZE = "model.onnx", False
# The newest that tf2onnx 1.17 writes is 18; runtimes know 17 since 2022.
_OPSET = 17


def check(settings: FormatSettings, network: Any = None) -> None:
    """Insists on the extra [onnx] and on a network that computes in float32.

    Raises:
      UserError: the extra is not installed, or the network computes otherwise.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise UserError(
            "ONNX needs tf2onnx and onnxruntime, which are not installed.",
            where="--format=onnx",
            received=str(error),
            fix="pip install '.[onnx]'",
        ) from None
    if network is not None:
        require_float32(network, "onnx")


def limits(settings: FormatSettings) -> Limits:
    """Returns what the file must keep to."""
    return Limits(equal_pixels=0.999)


def write(task: Task, path: str) -> dict[str, Any]:
    """Writes the file `path`; the metadata are its properties, each as JSON."""
    import onnx
    import tf2onnx

    function = task.serving.function((None, None), None)
    with bilinear_by(MATRICES):
        # Traced once and for all, under its own signature.
        function.get_concrete_function()
        model, _ = tf2onnx.convert.from_function(
            function, input_signature=function.input_signature, opset=_OPSET
        )
    for node in model.graph.node:
        _pad_by_numbers(node)
    onnx.helper.set_model_props(
        model, {key: json.dumps(value) for key, value in task.metadata.items()}
    )
    onnx.save(model, path)
    return {}


def _pad_by_numbers(node: Any) -> None:
    """Writes down the border of a dilated convolution, which onnxruntime does not work out itself.

    Without a stride it depends on the kernel alone, not on the size of the image.
    """
    import onnx

    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    dilations = found.get("dilations", [1])
    same = found.get("auto_pad", b"") == b"SAME_UPPER"
    if node.op_type != "Conv" or not same or max(dilations) == 1 or max(found["strides"]) > 1:
        return
    borders = [rate * (side - 1) for rate, side in zip(dilations, found["kernel_shape"])]
    before = [border // 2 for border in borders]
    after = [border - part for border, part in zip(borders, before)]
    kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("pads", [*before, *after])])


def load(path: str) -> Segment:
    """Returns how the written file segments an image under onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def segment(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels, probs = session.run([LABELS, PROBABILITIES], {IMAGE: image[np.newaxis]})
        return labels[0], probs[0]

    return segment
