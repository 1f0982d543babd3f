"""Golden case `unimatch/i`: evaluation by sliding windows and at multiples of 14.

The network is the file's: a convolution, and a mean over the window that it is shown.
"""

import functools

import numpy as np
import tensorflow as tf

from tests.golden_cases.unimatch_data import load
from tfseg import metrics
from tfseg.inference.protocols import SlidingWindow, WholePatches

IGNORE = 255


class _Network:
    """See the module; notes the sizes of what it is shown."""

    def __init__(self, arrays):
        self.num_classes = int(arrays["num_classes"])
        self._kernel = np.transpose(arrays["net/c1.weight"], (2, 3, 1, 0))
        self._bias = arrays["net/c1.bias"]
        self._local = arrays["net/c2.weight"][:, :, 0, 0].T, arrays["net/c2.bias"]
        self._mean = arrays["net/g.weight"].T, arrays["net/g.bias"]
        self.shown = []

    def __call__(self, image, training=False, **options):
        if tf.executing_eagerly():
            self.shown.append(tuple(image.shape[1:3]))
        x = tf.nn.relu(tf.nn.conv2d(image, self._kernel, 1, "SAME") + self._bias)
        mean = tf.reduce_mean(x, [1, 2])
        logits = tf.tensordot(x, self._local[0], 1) + self._local[1]
        return {"logits": logits + (mean @ self._mean[0] + self._mean[1])[:, None, None]}


@functools.lru_cache(maxsize=4)
def _computed(path):
    """Evaluates the images of a file; returns what each gave, by the file's names."""
    arrays = load(path)
    network = _Network(arrays)
    if "window" in arrays:
        border = "cut" if "_v1_" in path else "shift"
        seen = SlidingWindow(network, window=int(arrays["window"]), border=border)
    else:
        seen = WholePatches(network, multiple=14)
    found, total = {}, np.zeros((network.num_classes,) * 2, np.int64)
    images = [name.partition("/")[0] for name in arrays if name.endswith("/x")]
    for name in images:
        image = tf.constant(np.moveaxis(arrays[f"{name}/x"], 1, -1))
        logits = seen(image)["logits"]
        if isinstance(seen, SlidingWindow):
            del network.shown[len(network.shown) // 2 :]
            scores = seen.probabilities(image)[0]
            found[f"{name}/expected_probability_sum"] = np.moveaxis(scores.numpy(), -1, 1)
        else:
            found[f"{name}/expected_logits"] = np.moveaxis(logits.numpy(), -1, 1)
            found[f"{name}/resized_hw"] = [int(side) for side in seen.size(image)]
        prediction = tf.argmax(logits, -1).numpy()
        found[f"{name}/expected_prediction"] = prediction
        matrix = metrics.confusion_matrix(
            arrays[f"{name}/label"], prediction, network.num_classes, ignore_label=IGNORE
        )
        total += matrix
        hits = np.diag(matrix)
        found[f"{name}/intersection"] = hits
        found[f"{name}/union"] = matrix.sum(0) + matrix.sum(1) - hits
    iou = metrics.class_iou(total, absent="zero")
    found["expected_iou_class"] = 100.0 * iou
    found["expected_miou"] = 100.0 * metrics.mean_iou(total, absent="zero")
    return found


def _windows(path):
    """Returns the sizes that a network is shown, eagerly and without the loop of the graph."""
    arrays = load(path)
    shown = []
    for name in [name for name in arrays if name.endswith("/x")]:
        height, width = arrays[name].shape[2:]
        if "window" not in arrays:
            patches = WholePatches(None, multiple=14)
            shown.append(patches.size(tf.zeros([1, height, width, 3])))
            continue
        border = "cut" if "_v1_" in path else "shift"
        seen = SlidingWindow(None, window=int(arrays["window"]), border=border)
        (rows, row_at), (columns, column_at) = seen._places(height), seen._places(width)
        for i in range(int(rows)):
            for j in range(int(columns)):
                (top, bottom), (left, right) = row_at(i), column_at(j)
                shown.append((int(bottom - top), int(right - left)))
    return np.array(shown)


def _quantities(path):
    inputs = ("net/", "num_classes", "mode", "window")
    names = [
        name
        for name in load(path)
        if not name.startswith(inputs) and name.rpartition("/")[2] not in ("x", "label")
    ]
    return [*names, "window_calls_hw"]


def _check(path, name):
    expected = load(path)[name]
    if name == "window_calls_hw":
        np.testing.assert_array_equal(_windows(path), expected)
        return
    actual = _computed(path)[name]
    if name.endswith("expected_prediction"):
        assert np.mean(actual != expected) <= 1e-3
    elif "miou" in name or "iou_class" in name:
        np.testing.assert_allclose(actual, expected, atol=0.05)
    elif name.endswith(("intersection", "union")):
        np.testing.assert_allclose(actual, expected, atol=2)
    elif name.endswith("resized_hw"):
        np.testing.assert_array_equal(actual, expected)
    else:
        atol = 1e-5 if "probability" in name else 1e-4
        np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


CASES = {"unimatch/i": (_quantities, _check)}
