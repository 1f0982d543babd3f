"""Golden cases `lpl/crf`, `lpl/testtime`, `lpl/eval`: dense CRF, test-time prediction, mean IoU.

Test time: a model that answers with the recorded outputs, in the published order, stands for the
network; it insists on inputs of the sizes at which the published network saw its.
"""

import functools

import numpy as np
import tensorflow as tf

from tests.extras import NO_CRF
from tfseg import metrics
from tfseg.inference.merge import Views
from tfseg.inference.predictor import Predictor
from tfseg.ops import dense_crf

INPUTS = {
    "crf": ("probs", "image_chw_uint8"),
    # The image of the CRF is an input: ours is the original one, not one that was normalised and
    # taken back.
    "testtime": ("rates", "flip", "category", "image_norm", "image_uint8_chw"),
    "eval": ("gt", "pred", "num_classes"),
}
# An arg max may differ where the two largest scores are closer than this.
_TIE = 1e-5


@functools.lru_cache(maxsize=4)
def _load(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _quantities(family, path):
    skipped = INPUTS[family]
    return [n for n in _load(path) if n not in skipped and not n.startswith("logits_")]


def _unavailable(family, quantity):
    return NO_CRF if family == "crf" or quantity == "pred_stage2_crf" else None


def assert_same_labels(scores, actual, expected):
    """Compares arg maxima [H, W] where they are clear; scores [H, W, C]."""
    two = np.sort(scores, axis=-1)[..., -2:]
    clear = two[..., 1] - two[..., 0] >= _TIE
    assert clear.any()
    np.testing.assert_array_equal(actual[clear], expected[clear])


def _check_crf(path, name):
    arrays = _load(path)
    quantity, _, iterations = name.partition("_iter")
    assert quantity in ("q", "argmax"), f"{path} holds {name}, which no check knows"
    refined = dense_crf.dense_crf(
        arrays["probs"].transpose(1, 2, 0),
        arrays["image_chw_uint8"].transpose(1, 2, 0),
        **{**dense_crf.LEARNING_PSEUDO_LABELS, "iterations": int(iterations)},
    )
    if quantity == "q":
        np.testing.assert_allclose(refined, arrays[name].transpose(1, 2, 0), atol=1e-3)
    else:
        assert_same_labels(refined, refined.argmax(-1), arrays[name])


class RecordedModel:
    """Answers with recorded logits, one after the other."""

    def __init__(self, arrays):
        self._arrays, self.calls = arrays, 0

    def __call__(self, image, *, training, input_scale=1.0):
        assert not training
        logits = self._arrays[f"logits_{self.calls}"].transpose(0, 2, 3, 1)
        assert tuple(image.shape[1:3]) == logits.shape[1:3], (self.calls, image.shape)
        flip = int(self._arrays["flip"])
        assert input_scale == self._arrays["rates"][self.calls // (1 + flip)]
        self.calls += 1
        return {"logits": tf.constant(logits)}


def _predicted(path, *, present=None):
    """Labels [H, W] and probabilities [H, W, C] of the recorded image."""
    arrays = _load(path)
    model = RecordedModel(arrays)
    views = Views(
        scales=tuple(float(rate) for rate in arrays["rates"]),
        flip=bool(arrays["flip"]),
        merge_scales="logits",
        scale_kernel="cubic",
    )
    predictor = Predictor(model, views, wanted=["labels", "probs"])
    found = predictor(tf.constant(arrays["image_norm"].transpose(0, 2, 3, 1)), present)
    assert model.calls == sum(name.startswith("logits_") for name in arrays)
    return found.labels[0].numpy(), found.probs[0].numpy()


def _check_testtime(path, name):
    arrays = _load(path)
    expected, mean = arrays[name], arrays["mean_logits"].transpose(1, 2, 0)
    labels, probs = _predicted(path)
    if name == "mean_logits":
        # Logits matter up to a constant at each pixel.
        expected = tf.nn.log_softmax(mean.astype(np.float64)).numpy()
        seen = expected > -80
        np.testing.assert_allclose(np.log(probs[seen]), expected[seen], atol=3e-5)
    elif name in ("pred_stage1_test", "pred_stage1_inference"):
        present = arrays["category"][:, :, 0, 0]
        labels, _ = _predicted(path, present=tf.constant(present))
        assert_same_labels(np.where(present[0] > 0, mean, -1e30), labels, expected)
    elif name == "pred_stage2":
        assert_same_labels(mean, labels, expected)
    elif name == "pred_stage2_crf":
        image = arrays["image_uint8_chw"].transpose(1, 2, 0)
        refined = dense_crf.dense_crf(probs, image, **dense_crf.LEARNING_PSEUDO_LABELS)
        assert_same_labels(refined, refined.argmax(-1), expected)
    else:
        raise AssertionError(f"{path} holds {name}, which no check knows")


def _check_eval(path, name):
    arrays = _load(path)
    matrix = metrics.confusion_matrix(
        arrays["gt"], arrays["pred"], int(arrays["num_classes"]), ignore_label=255
    )
    actual = {
        "iou_percent": 100 * metrics.class_iou(matrix, absent="zero"),
        "miou_percent": 100 * metrics.mean_iou(matrix, absent="zero"),
    }
    np.testing.assert_allclose(actual[name], arrays[name], rtol=1e-9, atol=1e-9)


CASES = {
    f"lpl/{family}": (functools.partial(_quantities, family), check)
    for family, check in (
        ("crf", _check_crf),
        ("testtime", _check_testtime),
        ("eval", _check_eval),
    )
}
# Why a quantity of a family cannot be computed here, or None.
UNAVAILABLE = {f"lpl/{family}": functools.partial(_unavailable, family) for family in INPUTS}
