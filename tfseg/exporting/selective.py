"""8-bit networks that keep in float32 the layers to which 8 bits do most harm.

TensorFlow's quantisation debugger runs every layer of a network in 8 bits beside the same layer in
float32 and tells by how much the results differ. A layer whose error is many steps of its own scale
costs accuracy. Layers are kept in float32, the worst first and twice as many at each attempt, until
the network agrees with the original. Two operations always are. Of divisions, what keeps a divisor
from zero is smaller than any step of 8 bits. Of broadcasts, the result was off by forty steps.

Where SLRNet's head on EfficientNet-Lite0 was looked into (257 x 257, 12 images), 0.72 of the pixels
agreed in 8 bits. The errors lay in the broadcast of the ASPP's pooled features (40 steps), and in
the sums and products of the factorisation (15 to 300); no convolution of the backbone had more than
3. With the eight worst in float32 0.96 agreed, with 24 of 137 layers 0.98.
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
_ALWAYS_FLOAT = ["DIV", "BROADCAST_TO"]
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
        # One is left in 8 bits: the debugger refuses a network that has none.
        if len(kept) >= len(ranked) - 1:
            break
        kept = ranked[: min(count, len(ranked) - 1)]
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


class Agreement:
    """The share of the pixels of some images to which a converted network gives the same label.

    Args:
      original: how the network segments an image before it is converted.
      pictures: the images.
    """

    def __init__(self, original: Segment, pictures: Iterable[Picture]):
        self._pictures = pictures
        self._labels = [
            original(picture.image)[0].astype(np.uint8)[: picture.shown[0], : picture.shown[1]]
            for picture in pictures
        ]

    def __call__(self, converted: Segment) -> float:
        """Returns the share, 0 to 1."""
        equal = total = 0
        for picture, expected in zip(self._pictures, self._labels):
            rows, columns = picture.shown
            equal += int((converted(picture.image)[0][:rows, :columns] == expected).sum())
            total += expected.size
        return equal / total
