"""8-bit networks that keep in float32 the layers to which 8 bits do most harm.

TensorFlow's quantisation debugger runs every layer of a network in 8 bits beside the same layer in
float32 and tells by how much the results differ. A layer whose error is many steps of its own scale
costs accuracy. Layers are kept in float32, the worst first and twice as many at each attempt, until
the network agrees with the original. Divisions always are: what keeps a divisor from zero is smaller
than any step of 8 bits.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.exporting.comparison import Segment
from tfseg.exporting.pictures import Picture

# Operations that 8 bits cannot hold.
_ALWAYS_FLOAT = ["DIV"]
# Layers that are kept at the first attempt after the one with none.
_FIRST = 4


def quantized(
    converter: Any,
    images: Callable[[], Iterable[list[np.ndarray]]],
    *,
    agreement: Callable[[bytes], float],
    wanted: float,
) -> tuple[bytes, list[str]]:
    """Converts a network to 8 bits.

    Args:
      converter: a `tf.lite.TFLiteConverter` with optimisations and representative images.
      images: these images.
      agreement: says of a converted network how far it agrees with the original, 0 to 1.
      wanted: what is enough.

    Returns:
      The converted network, and the names of what is kept in float32: outputs of layers. Where
      nothing is enough, the one that agrees best.
    """
    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter, debug_dataset=images, debug_options=_keeping([])
    )
    content, kept, ranked = debugger.get_nondebug_quantized_model(), [], None
    best, count = (agreement(content), content, kept), _FIRST
    _tell(best)
    while best[0] < wanted:
        if ranked is None:
            ranked = _most_harmed_first(debugger)
        if len(kept) == len(ranked):
            break
        kept = ranked[:count]
        count *= 2
        debugger.options = _keeping(kept)
        content = debugger.get_nondebug_quantized_model()
        found = agreement(content), content, kept
        _tell(found)
        best = max(best, found, key=lambda attempt: attempt[0])
    return best[1], best[2]


def _keeping(layers: list[str]) -> Any:
    return tf.lite.experimental.QuantizationDebugOptions(
        denylisted_ops=_ALWAYS_FLOAT, denylisted_nodes=layers
    )


def _tell(attempt: tuple[float, bytes, list[str]]) -> None:
    share, content, kept = attempt
    print(
        f"int8 with {len(kept)} layers in float32: {share:.4f} of the pixels as before, "
        f"{len(content) / 1e6:.2f} MB",
        flush=True,
    )


def _most_harmed_first(debugger: Any) -> list[str]:
    """Returns the names of the layers' outputs by their error, in steps of their 8-bit scale."""
    debugger.run()
    text = io.StringIO()
    debugger.layer_statistics_dump(text)
    text.seek(0)
    harm = {
        row["tensor_name"]: math.sqrt(float(row["mean_squared_error"])) / float(row["scale"])
        for row in csv.DictReader(text)
    }
    return sorted(harm, key=harm.get, reverse=True)


def agreement(original: Segment, converted: Segment, pictures: Iterable[Picture]) -> float:
    """Returns the share of the pixels of some images to which both give one label."""
    equal = total = 0
    for picture in pictures:
        rows, columns = picture.shown
        labels = [segment(picture.image)[0][:rows, :columns] for segment in (original, converted)]
        equal += int((labels[0] == labels[1]).sum())
        total += labels[0].size
    return equal / total
