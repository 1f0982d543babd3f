"""Golden cases `unimatch/b`, `c`, `h`, `j`: losses on given logits, schedules, hard examples.

Rates and averages are float32 here, as everywhere in TensorFlow's optimisers (theirs: float64).
"""

import functools

import numpy as np
import tensorflow as tf

from tests.golden_cases.unimatch_data import load
from tfseg.data.specs import DatasetSpec
from tfseg.methods import teacher
from tfseg.methods.unimatch import UniMatch
from tfseg.methods.unimatch_v2 import UniMatchV2
from tfseg.monitors import Monitors, summarise
from tfseg.ops import hard_examples
from tfseg.settings.methods.weak_to_strong import UniMatchConfig, UniMatchV2Config
from tfseg.settings.run import TrainConfig
from tfseg.training.optimizers import Scaled, learning_rate

IGNORE = 255
_LOSS, _GRADIENT = 1e-5, 1e-7
_INPUTS = {"threshold", "ohem_min_kept"}


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def box_of(mask):
    """Returns top, left, height, width of each mask uint8 [N, H, W], int32 [N, 4]."""
    boxes = []
    for part in mask:
        rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
        if not rows.size:
            boxes.append([0, 0, 0, 0])
            continue
        box = [rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1]
        assert part.sum() == box[2] * box[3]
        boxes.append(box)
    return np.array(boxes, np.int32)


def settings_of(cls, threshold, min_kept):
    """Returns a method's settings; the published code has no threshold of its own for OHEM."""
    mined = {"labelled_loss": "hard_examples", "hard_example_pixels": int(min_kept)}
    return cls(confidence_threshold=float(threshold), **(mined if min_kept >= 0 else {}))


def spec_of(classes):
    return DatasetSpec("case", tuple(f"class{i}" for i in range(classes)))


class _NoNetwork(tf.keras.Model):
    """Stands where logits are given."""


def stream_of(arrays, donor=""):
    """Returns an unlabelled stream's batch; images and strong views are those of the file."""
    ignore = arrays["ignore" + donor]
    stream = {
        "image": tf.zeros([*ignore.shape, 3]),
        "valid": tf.constant((ignore != IGNORE).astype(np.float32)),
        "hidden_label": tf.fill(ignore.shape, IGNORE),
        "image_strong": tf.constant(channels_last(arrays["img_s1" + donor])),
        "image_strong_2": tf.constant(channels_last(arrays["img_s2" + donor])),
    }
    if not donor:
        stream["boxes"] = tf.stack([box_of(arrays["box1"]), box_of(arrays["box2"])], 1)
    return stream


class _FirstVersion(UniMatch):
    """UniMatch whose passes give the logits of the file."""

    given: dict

    def guess_of_donor(self, donor):
        return self.guess(self.given["donor"], donor)

    def _weak_pass(self, labelled, weak, seed):
        return self.given["x"], self.given["w"], self.given["fp"]

    def strong_logits(self, views, seed):
        self.views = views
        return [self.given["s1"], self.given["s2"]]


class _SecondVersion(UniMatchV2):
    """UniMatch V2 whose passes give the logits of the file."""

    given: dict

    def passes(self, labelled, views, seed):
        self.views = views
        return self.given["x"], [self.given["s1"], self.given["s2"]]


@functools.lru_cache(maxsize=8)
def _computed(path, variant):
    """Runs a method over the given logits; returns what it gave, by the file's names."""
    arrays = load(path)
    first = "logits_fp" in arrays
    cls, config = (_FirstVersion, UniMatchConfig) if first else (_SecondVersion, UniMatchV2Config)
    method = cls(
        build_model=lambda name="model": _NoNetwork(name=name),
        spec=spec_of(arrays["logits_x"].shape[1]),
        config=TrainConfig(),
        settings=settings_of(
            config, arrays[f"{variant}/threshold"], arrays[f"{variant}/ohem_min_kept"]
        ),
    )
    names = [name.removeprefix("logits_") for name in arrays if name.startswith("logits_")]
    method.given = {name: tf.Variable(channels_last(arrays[f"logits_{name}"])) for name in names}
    label = tf.constant(arrays["y"].astype(np.int32))
    batch = {
        "labelled": {"image": tf.zeros([*label.shape, 3]), "label": label},
        "unlabelled": stream_of(arrays),
    }
    if first:
        batch["donor"] = stream_of(arrays, "_donor")
    else:
        method.teacher = lambda image, training: {"logits": method.given["teacher"]}
    monitors = Monitors()
    with tf.GradientTape() as tape:
        losses = method.losses(batch, tf.constant(9, tf.int64), tf.constant([1, 2]), monitors)
        total = tf.add_n(list(losses.values()))
    trained = [name for name in names if name not in ("w", "donor", "teacher")]
    gradients = tape.gradient(total, [method.given[name] for name in trained])
    halves = [
        method.guess_loss(method.given[f"s{i}"], view) for i, view in enumerate(method.views, 1)
    ]
    found = {
        "expected_loss_all": total,
        "expected_loss_x": 2.0 * losses["segmentation"],
        "expected_loss_s": tf.add_n(halves) / 2.0,
        "expected_loss_s1": halves[0],
        "expected_loss_s2": halves[1],
        "expected_mask_ratio": summarise(monitors.sums)[0]["mask_ratio"],
    }
    if first:
        found["expected_loss_w_fp"] = 4.0 * losses["dropped_features"]
    for name, gradient in zip(trained, gradients):
        found[f"grad_logits_{name}"] = np.moveaxis(gradient.numpy(), -1, 1)
    for i, view in enumerate(method.views, 1):
        found[f"expected_label_s{i}"] = view.label
        found[f"expected_img_s{i}_pasted"] = np.moveaxis(view.image.numpy(), -1, 1)
    return found


def _quantities(path):
    return [
        name
        for name in load(path)
        if name.startswith("expected_") or ("/" in name and name.rpartition("/")[2] not in _INPUTS)
    ]


def _check(path, name):
    variant, _, key = name.rpartition("/")
    # What is pasted depends on no threshold.
    variants = [x.partition("/")[0] for x in load(path) if x.endswith("/threshold")]
    actual, expected = _computed(path, variant or variants[0])[key], load(path)[name]
    if "label" in name or "img" in name:
        np.testing.assert_array_equal(actual, expected)
    elif "grad" in name:
        np.testing.assert_allclose(actual, expected, rtol=0, atol=_GRADIENT)
    else:
        np.testing.assert_allclose(actual, expected, rtol=_LOSS, atol=1e-8)


# Schedules ----------------------------------------------------------------------------------------


def _check_schedule(path, name):
    arrays = load(path)
    total = int(arrays["steps_per_epoch"]) * int(arrays["epochs"])
    config = TrainConfig(
        base_learning_rate=float(arrays["lr0"]),
        training_number_of_steps=total,
        learning_rate_lag_steps=1,
    )
    if name == "ema_rho":
        decay = teacher.running_mean_up_to(UniMatchV2Config().teacher_decay)
        found = [float(decay(tf.constant(t, tf.float32))) for t in range(len(arrays[name]))]
        np.testing.assert_allclose(found, arrays[name], rtol=2e-7, atol=6e-8)
        return
    steps = [total] if name == "lr_after_last_step" else range(total)
    schedules = [Scaled(learning_rate(config), float(x)) for x in (1.0, arrays["multiplier"])]
    found = np.array([[float(s(tf.constant(t, tf.int64))) for s in schedules] for t in steps])
    # Near the end 1 - t / T has few digits left in float32.
    np.testing.assert_allclose(
        found.reshape(arrays[name].shape), arrays[name], rtol=2e-6, atol=1e-6 * found.max()
    )


def _schedule_quantities(path):
    inputs = {"lr0", "multiplier", "steps_per_epoch", "epochs"}
    return [name for name in load(path) if name not in inputs]


# Hard examples ------------------------------------------------------------------------------------


def _hard_quantities(path):
    return [
        name
        for name in load(path)
        if name.rpartition("/")[2] in ("loss", "grad_logits", "pixels_kept")
    ]


def _check_hard(path, name):
    arrays, (case, _, key) = load(path), name.rpartition("/")
    logits = tf.constant(channels_last(arrays[f"{case}/logits"]))
    label = tf.constant(arrays[f"{case}/label"].astype(np.int32))
    options = {
        "ignore_label": IGNORE,
        "threshold": float(arrays[f"{case}/thresh"]),
        "min_kept": int(arrays[f"{case}/min_kept"]),
    }
    if key == "pixels_kept":
        assert (
            int(tf.math.count_nonzero(hard_examples.hard_pixels(logits, label, **options)))
            == (arrays[name])
        )
        return
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = hard_examples.hard_pixel_loss(logits, label, **options)
    if key == "loss":
        np.testing.assert_allclose(loss, arrays[name], rtol=1e-6, atol=1e-6)
        return
    gradient = np.moveaxis(tape.gradient(loss, logits).numpy(), -1, 1)
    np.testing.assert_allclose(gradient, arrays[name], atol=1e-6)


CASES = {
    "unimatch/b": (_quantities, _check),
    "unimatch/c": (_quantities, _check),
    "unimatch/h": (_schedule_quantities, _check_schedule),
    "unimatch/j": (_hard_quantities, _check_hard),
}
