"""Golden cases `slrnet/infer`: test-time views, class filtering, the weakened background.

A model that answers with the recorded masks and class scores, in the published order, stands for
the network; it insists on inputs of the sizes at which the published network saw its.
"""

import functools
import os

import numpy as np
import tensorflow as tf

from tests.golden_cases.lpl_eval import assert_same_labels
from tfseg.inference.merge import ClassFilter, Views
from tfseg.inference.predictor import Predictor
from tfseg.models.backbones.base import STANDARDISED
from tfseg.ops.class_aware import present_classes

# Ten times the observed difference.
_MASKS = {"rtol": 1e-6, "atol": 5.5e-7}
INPUTS = ("scales", "size", "fp_cut", "bg_pow", "use_cls_label", "topk", "label", "image_scale1")


@functools.lru_cache(maxsize=4)
def _load(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _quantities(path):
    """What to check; the recorded answers of each scale are inputs too."""
    arrays = _load(path)
    answers = {f"{kind}_{i}" for kind in ("cls", "masks") for i in range(len(arrays["scales"]))}
    return [name for name in arrays if name not in INPUTS and name not in answers]


class RecordedModel:
    """Answers with recorded masks (as logits) and class scores, one after the other."""

    def __init__(self, arrays):
        self._arrays, self.calls = arrays, 0

    def __call__(self, image, *, training, input_scale):
        assert not training
        i, mirrored = divmod(self.calls, 2)
        self.calls += 1
        masks = self._arrays[f"masks_{i}"][mirrored].transpose(1, 2, 0)
        assert tuple(image.shape[1:3]) == masks.shape[:2], (i, image.shape)
        assert input_scale == self._arrays["scales"][i]
        scores = self._arrays[f"cls_{i}"][mirrored]
        return {
            "logits": tf.math.log(tf.constant(masks[np.newaxis])),
            "image_logits": tf.constant(scores[np.newaxis]),
        }


def _image(arrays):
    """The image as it was before it was normalised, RGB 0 to 255 [1, H, W, 3]."""
    pixels = np.rint(255 * np.clip(arrays["image_denorm"].transpose(1, 2, 0), 0, 1))
    assert pixels.shape[:2] == tuple(arrays["size"])
    return tf.constant(pixels[np.newaxis].astype(np.float32))


def _predicted(path):
    """Labels [H, W] and masks [H, W, C] of the recorded image."""
    arrays = _load(path)
    use_labels = bool(arrays["use_cls_label"])
    views = Views(
        scales=tuple(float(scale) for scale in arrays["scales"]),
        flip=True,
        merge_scales="masks",
        scale_kernel="pillow",
        class_filter=ClassFilter(
            score_cut=None if use_labels else float(arrays["fp_cut"]),
            top_classes=None if use_labels else int(arrays["topk"]),
            background_power=float(arrays["bg_pow"]),
            # COCO's program weakens persons.
            suppressed_class=1 if "coco" in os.path.basename(path) else None,
        ),
    )
    present = None
    if use_labels:
        present = present_classes(tf.constant(arrays["label"][np.newaxis]), has_background=True)
    model = RecordedModel(arrays)
    found = Predictor(model, views, wanted=["labels", "probs"])(_image(arrays), present)
    assert model.calls == 2 * len(arrays["scales"])
    return found.labels[0].numpy(), found.probs[0].numpy()


def _check(path, name):
    arrays = _load(path)
    expected = arrays[name]
    masks = arrays["out_masks"].transpose(1, 2, 0)
    if name == "out_masks":
        np.testing.assert_allclose(_predicted(path)[1], masks, **_MASKS)
    elif name == "out_argmax":
        assert_same_labels(masks, _predicted(path)[0], expected)
    elif name == "image_denorm":
        scale, offset = (
            np.array(x, np.float32)[:, None, None]
            for x in (STANDARDISED.scale, STANDARDISED.offset)
        )
        actual = (arrays["image_scale1"] * scale + offset) / 255
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1.1e-6)
    else:
        raise AssertionError(f"{path} holds {name}, which no check knows")


CASES = {"slrnet/infer": (_quantities, _check)}
