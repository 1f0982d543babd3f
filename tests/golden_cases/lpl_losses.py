"""Golden cases `lpl/cce`, `lpl/pct`, `lpl/poly`: losses, cross training, learning rates."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tfseg.data.specs import DatasetSpec
from tfseg.methods.learning_pseudo_labels import LearningPseudoLabels
from tfseg.monitors import Monitors
from tfseg.ops import class_aware, cross_training, losses
from tfseg.settings.methods.learning_pseudo_labels import LearningPseudoLabelsConfig
from tfseg.settings.run import TrainConfig
from tfseg.training.optimizers import Scaled, learning_rate

IGNORE = 255
# Of the published class-aware softmax.
EPSILON = 1e-5
LOSSES = {
    "loss_seg_hybrid": "hybrid_segmentation",
    "loss_seg_pseudo": "pseudo_segmentation",
    "loss_cls_hybrid": "classification",
    "loss_pct": "cross_training",
}
COUNTS = ("iou_t", "iou_p", "iou_tp")


@functools.lru_cache(maxsize=4)
def _load(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _nhwc(x):
    return np.moveaxis(x, 1, -1)


# Class-aware cross entropy ------------------------------------------------------------------------


def _cce_quantities(path):
    return [
        name for name in _load(path) if name not in ("logits", "category", "label", "temperature")
    ]


def _check_cce(path, name):
    arrays = _load(path)
    logits = tf.constant(_nhwc(arrays["logits"]))
    present = tf.constant(arrays["category"][:, :, 0, 0])
    label = tf.constant(arrays["label"].astype(np.int32))
    temperature = float(arrays["temperature"])
    if name == "plain_ce":
        actual = losses.segmentation_loss(logits, label, ignore_label=IGNORE)
        np.testing.assert_allclose(actual, arrays[name], rtol=1e-5)
        return
    if name in ("softmax", "logsoftmax"):
        # The loss of a pixel is minus the log probability of its label, log(q + eps).
        of_classes = [
            class_aware.class_aware_cross_entropy(
                logits,
                tf.fill(label.shape, c),
                present,
                ignore_label=IGNORE,
                temperature=temperature,
            )[0]
            for c in range(logits.shape[-1])
        ]
        actual = -tf.stack(of_classes, -1)
        if name == "softmax":
            # Published as q g.
            actual = (tf.exp(actual) - EPSILON) * present[:, None, None, :]
        np.testing.assert_allclose(actual, _nhwc(arrays[name]), rtol=1e-5, atol=2e-5)
        return
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss, kept = class_aware.class_aware_cross_entropy(
            logits, label, present, ignore_label=IGNORE, temperature=temperature
        )
        mean = tf.reduce_sum(loss) / tf.reduce_sum(kept)
    if name == "loss_none":
        np.testing.assert_allclose(loss, arrays[name], rtol=1e-5, atol=1e-5)
    elif name == "loss_mean":
        np.testing.assert_allclose(mean, arrays[name], rtol=1e-5, atol=4e-6)
    elif name == "grad_logits":
        gradient = tape.gradient(mean, logits)
        np.testing.assert_allclose(gradient, _nhwc(arrays[name]), rtol=1e-4, atol=1e-7)
    else:
        raise AssertionError(f"{path} holds {name}, which no check knows")


# Progressive cross training -----------------------------------------------------------------------


class _Given(tf.keras.Model):
    """A network whose logits are given."""

    logits_layer = None

    def __init__(self, shape, name):
        super().__init__(name=name)
        self.given = tf.Variable(tf.zeros(shape), name=f"{name}/given")

    def call(self, image, training=False, dropout_seed=None):
        return {"logits": self.given}


@functools.lru_cache(maxsize=4)
def _steps(path):
    """Runs the method over the given predictions; returns what each step gave, by array name."""
    arrays = _load(path)
    classes, shape = int(arrays["num_classes"]), arrays["t0_pred_hybrid"].shape
    size = int(arrays["subbatch"])
    spec = DatasetSpec("case", tuple(f"class{i}" for i in range(classes)))
    settings = dataclasses.replace(
        LearningPseudoLabelsConfig(),
        score_power=float(arrays["score_pow"]),
        score_momentum=float(arrays["momentum"]),
    )
    method = LearningPseudoLabels(
        build_model=lambda name: _Given([shape[0], *shape[2:], classes], name),
        spec=spec,
        config=TrainConfig(),
        settings=settings,
    )
    result = {}
    for t in range(int(arrays["n_iters"])):

        def given(name, t=t):
            return arrays[f"t{t}_{name}"]

        hybrid, pseudo = method.networks().values()
        hybrid.given.assign(_nhwc(given("pred_hybrid")))
        pseudo.given.assign(_nhwc(given("pred_pseudo")))
        label = given("seg_label").astype(np.int32)
        # Ours always counts background as present; in these cases theirs does too.
        category = given("category")[:, :, 0, 0]
        np.testing.assert_array_equal(category[:, 0], 1)
        has_mask = given("mask_in").any((1, 2))
        image = np.zeros([*label.shape, 3], np.float32)
        streams = {
            "labelled": {"label": label[:size]},
            "weak": {
                "label": np.where(has_mask[size:, None, None], label[size:], IGNORE),
                "hidden_label": label[size:],
                "has_label": has_mask[size:],
            },
        }
        for stream, part in (("labelled", slice(0, size)), ("weak", slice(size, None))):
            streams[stream] |= {"image": image[part], "image_label": category[part, 1:]}
        batch = tf.nest.map_structure(tf.constant, streams)
        with tf.GradientTape() as tape:
            values = method.losses(batch, tf.constant(t, tf.int64), tf.constant([0, t]), Monitors())
            total = tf.add_n(list(values.values()))
        gradients = tape.gradient(total, [hybrid.given, pseudo.given])
        counts = method.counts.numpy()
        iou = cross_training.iou_of_counts(tf.constant(counts))
        present = tf.constant(category)
        labels = [
            cross_training.cross_label(
                net.given, present, tf.constant(label), tf.constant(given("is_strong_image") > 0)
            ).numpy()
            for net in (hybrid, pseudo)
        ]
        # The published arrays of the first half, which nothing uses, are uncorrected predictions.
        raw = [
            cross_training.cross_label(
                net.given, present, tf.constant(label), tf.zeros(len(label), tf.bool)
            ).numpy()
            for net in (hybrid, pseudo)
        ]
        result |= {
            f"t{t}_loss": total.numpy(),
            f"t{t}_iou": iou.numpy(),
            f"t{t}_sample_weight": cross_training.image_weights(
                iou, present[size:], power=settings.score_power, zero_counts_as=1.0
            ).numpy()[:, None, None],
            f"t{t}_grad_hybrid": np.moveaxis(gradients[0].numpy(), -1, 1),
            f"t{t}_grad_pseudo": np.moveaxis(gradients[1].numpy(), -1, 1),
        }
        for name, ours in LOSSES.items():
            result[f"t{t}_{name}"] = values[ours].numpy()
        for name, count in zip(COUNTS, counts):
            result[f"t{t}_{name}"] = count
        for name, corrected, uncorrected in zip(("pseudo_label", "pseudo_label2"), labels, raw):
            result[f"t{t}_{name}"] = np.concatenate([uncorrected[:size], corrected[size:]])
    return result


def _pct_quantities(path):
    inputs = ("pred_hybrid", "pred_pseudo", "category", "seg_label", "mask_in", "is_strong_image")
    return [
        name
        for name in _load(path)
        if name.startswith("t") and name.partition("_")[2] not in inputs
    ]


def _check_pct(path, name):
    expected, actual = _load(path)[name], _steps(path)[name]
    if "label" in name:
        np.testing.assert_array_equal(actual, expected)
    elif "grad" in name:
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)
    else:
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


# Learning rate ------------------------------------------------------------------------------------


def _check_poly(path, name):
    arrays = _load(path)
    config = TrainConfig(
        base_learning_rate=float(arrays["lr_init"]),
        training_number_of_steps=int(arrays["max_itr"]),
        learning_power=float(arrays["power"]),
    )
    columns = arrays[name].T
    for multiplier, expected in zip((1, *arrays["rate"].tolist()), columns):
        schedule = Scaled(learning_rate(config), float(multiplier))
        actual = [float(schedule(tf.constant(step))) for step in arrays["itr"]]
        # Near the end 1 - t / D has few digits left in float32.
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-8 * multiplier)


CASES = {
    "lpl/cce": (_cce_quantities, _check_cce),
    "lpl/pct": (_pct_quantities, _check_pct),
    "lpl/poly": (lambda path: ["lr_now_and_groups"], _check_poly),
}
