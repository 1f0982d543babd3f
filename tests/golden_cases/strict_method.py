"""Golden cases `strict/consistency`, `strict/train_step` and `zs3/selftrain`: pseudo labels, steps.

Published labels are numbered seen classes first, -1 is "no label". Void and padding are among the
unlabelled pixels there (--pseudo_label_void); where background is a seen class it is number 0.
"""

import functools
import re

import numpy as np
import tensorflow as tf

from tests.golden_cases.lpl_model import channels_last, load
from tests.golden_cases.strict_model import places, projection_net, rgb
from tfseg.data.class_splits import ClassSplit
from tfseg.data.specs import DatasetSpec
from tfseg.methods.strict import Strict
from tfseg.monitors import Monitors
from tfseg.ops import agreement
from tfseg.ops.confident_share import most_confident
from tfseg.settings.methods.strict import StrictConfig
from tfseg.settings.run import TrainConfig
from tfseg.training.trainer import Trainer

IGNORE = 255
# Ten times the observed difference.
_VIEWS, _NET_INPUT, _LOSS = 3e-5, 4e-4, 4e-6
_STEP_LOGITS, _STEP_LOSS, _STEP_GRADIENTS, _STEP_WEIGHTS = 8e-6, 3e-6, 5e-7, 5e-7
_PUBLISHED_WEIGHT_DECAY = 5e-4


def near(actual, expected, limit: float) -> None:
    """Compares, with a limit that is never below 1e-6 of the largest value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    limit = max(limit, 1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def _channels_first(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def _spec(arrays) -> DatasetSpec:
    seen, unseen = int(arrays["n_seen"]), int(arrays["n_unseen"])
    split = ClassSplit(
        "golden",
        seen=tuple(range(seen)),
        unseen=tuple(range(seen, seen + unseen)),
        background=0 if int(arrays["bkg"]) else None,
    )
    names = tuple(f"class{i}" for i in range(seen + unseen))
    return DatasetSpec("golden", names, seen_unseen=split)


def _label(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, IGNORE, x).astype(np.int32)


def _batch(x, label, spec) -> dict[str, np.ndarray]:
    label = _label(label)
    background = spec.seen_unseen.background
    return {
        "image": x,
        "label": label,
        "candidate": np.zeros(label.shape, bool) if background is None else label == background,
        "hidden_label": np.full_like(label, IGNORE),
    }


class _Strict(Strict):
    """Keeps what it learned from."""

    def segmentation_loss(self, logits, target):
        self.target = target
        return super().segmentation_loss(logits, target)


def _method(build_model, spec, *, views, train=None) -> _Strict:
    settings = StrictConfig(pseudo_label_void=spec.seen_unseen.background is None, **views)
    config = TrainConfig(method="strict", upsample_logits=False, **(train or {}))
    return _Strict(build_model=build_model, spec=spec, config=config, settings=settings)


# strict/consistency ------------------------------------------------------------------------------


class _Student(tf.Module):
    """Answers with given logits."""

    def __init__(self, logits):
        super().__init__()
        self.backbone, self.logits = tf.Module(), tf.Variable(logits)

    def __call__(self, image, training, dropout_seed):
        return {"logits": self.logits}


class _Teacher(tf.Module):
    """Answers with recorded scores in the published order; seen classes have the highest."""

    def __init__(self, arrays):
        super().__init__()
        self._scores = [arrays[n] for n in sorted(_named(arrays, "raw_scores"), key=_number)]
        self._seen, self.inputs = int(arrays["n_seen"]), []

    def __call__(self, image, training, input_scale):
        assert not training
        scores = self._scores[len(self.inputs) % len(self._scores)]
        self.inputs.append(image)
        shape = (scores.shape[0], self._seen, *scores.shape[2:])
        return {"logits": channels_last(np.concatenate([np.full(shape, 1e3, "f4"), scores], 1))}


def _named(arrays, prefix: str) -> list[str]:
    return [name for name in arrays if name.startswith(prefix + "_")]


def _number(name: str) -> int:
    return int(re.search(r"_(\d+)(_|$)", name)[1])


@functools.lru_cache(maxsize=4)
def _consistency(path: str) -> dict[str, np.ndarray]:
    arrays = load(path)
    spec, teacher = _spec(arrays), _Teacher(arrays)
    student = _Student(channels_last(arrays["student_logits"]))
    views = {
        "view_scales": tuple(arrays["scales"].tolist()),
        "mirror_views": bool(arrays["mirroring"]),
    }
    method = _method(
        lambda name="model": teacher if name == "teacher" else student, spec, views=views
    )
    batch = _batch(channels_last(arrays["x"]), arrays["labels"], spec)
    batch = {name: tf.constant(value) for name, value in batch.items()}
    with tf.GradientTape() as tape:
        losses = method.losses(
            {"train": batch}, tf.constant(0, tf.int64), tf.constant([0, 0]), Monitors()
        )
    assert len(teacher.inputs) == len(_named(arrays, "raw_scores"))
    inputs = list(teacher.inputs)
    seen_views = method.view_logits(batch["image"], student.logits.shape[1:3])
    labels = (
        (name, agreement.agree([seen_views[_number(name)]])[0])
        for name in _named(arrays, "view_argmax")
    )
    # Nothing is pseudo labelled where nothing is a candidate.
    method.candidates = lambda label, candidate: tf.zeros_like(candidate)
    target = method.target
    method.losses({"train": batch}, tf.constant(0, tf.int64), tf.constant([0, 0]), Monitors())
    return {
        "loss": losses["segmentation"],
        "grad_student": _channels_first(tape.gradient(losses["segmentation"], student.logits)),
        "target_resized": method.target,
        "target_mixed": target,
        **dict(labels),
        **{
            name: _channels_first(seen_views[_number(name)])
            for name in _named(arrays, "view_logits")
        },
        **{name: _channels_first(inputs[_number(name)]) for name in _named(arrays, "net_input")},
    }


_CONSISTENCY_INPUTS = {"x", "labels", "student_logits", "n_seen", "n_unseen", "bkg", "scales"}
_CONSISTENCY_INPUTS |= {"mirroring", "consistency"}


def _check_consistency(path: str, name: str) -> None:
    actual, expected = _consistency(path)[name], load(path)[name]
    if name.startswith("target"):
        return np.testing.assert_array_equal(actual, _label(expected))
    if name.startswith("view_argmax"):
        return np.testing.assert_array_equal(actual, expected)
    limits = {"view": _VIEWS, "net": _NET_INPUT, "loss": _LOSS, "grad": 1e-8}
    return near(actual, expected, limits[name.split("_")[0]])


def _consistency_quantities(path: str) -> list[str]:
    known = _CONSISTENCY_INPUTS
    return [n for n in load(path) if n not in known and not n.startswith("raw_scores_")]


# strict/train_step -------------------------------------------------------------------------------


def _part(arrays, prefix: str) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


class _Steps:
    """Runs the steps of a file by the real trainer."""

    def __init__(self, path: str):
        arrays = self._arrays = load(path)
        spec, parameters = _spec(arrays), _part(arrays, "before/")
        train = {
            "base_learning_rate": float(arrays["base_lr"]),
            "training_number_of_steps": int(arrays["max_iter"]),
            "learning_power": float(arrays["power"]),
            "learning_rate_update_steps": int(arrays["lr_decay_iter"]),
            "weight_decay": _PUBLISHED_WEIGHT_DECAY,
        }
        self.method = _method(
            lambda name="model": projection_net(parameters, arrays["emb"], name=name),
            spec,
            views={},
            train=train,
        )
        self.places = places(self.method.model)
        assert set(self.places) == set(parameters)
        for name, slot in self.places.items():
            slot.variable.assign(slot.arrange(parameters[name]))
        self._steps = sorted({n.split("/")[0] for n in arrays if re.match(r"s\d+/", n)})
        batches = [_batch(rgb(arrays[f"{s}/x"]), arrays[f"{s}/labels"], spec) for s in self._steps]
        stacked = tf.nest.map_structure(lambda *parts: np.stack(parts), *batches)
        self._batches = [{"train": tf.nest.map_structure(tf.constant, b)} for b in batches]
        self._trainer = Trainer(
            method=self.method,
            strategy=tf.distribute.get_strategy(),
            config=self.method.config,
            iterator=iter(tf.data.Dataset.from_tensor_slices({"train": stacked})),
        )
        self.results, self._uncleared = {}, {}
        for i, step in enumerate(self._steps):
            self._run(i, step)

    def _run(self, i: int, step: str) -> None:
        trainer, method = self._trainer, self.method
        if i == 0:
            method.begin_round()
        batch, variables = self._batches[i], {n: s.variable for n, s in self.places.items()}
        image = batch["train"]["image"]
        with tf.GradientTape() as tape:
            losses = method.losses(batch, tf.constant(i, tf.int64), tf.constant([0, 0]), Monitors())
        trained = {n: v for n, v in variables.items() if "running" not in n}
        gradients = tape.gradient(losses["segmentation"], trained)
        for name in set(trained) - self.group(1.0) - self.group(10.0) - self.group(20.0):
            # The published optimiser does not know these, and so never clears their gradients.
            gradients[name] += self._uncleared.get(name, 0.0)
            self._uncleared[name] = gradients[name]
        self.results[f"{step}/target"] = method.target
        self.results[f"{step}/student_logits"] = method.model(image, training=True)["logits"]
        self.results[f"{step}/grad"] = gradients
        iteration = int(self._arrays[f"{step}/iter"])
        for optimizer in trainer.optimizers:
            optimizer.iterations.assign(iteration)
        self.results[f"{step}/loss"] = trainer.train(1).losses["segmentation"]
        self.results[f"{step}/lr"] = {
            group.lr_multiplier: float(optimizer.learning_rate)
            for group, optimizer in zip(trainer.groups, trainer.optimizers)
        }
        self.results[f"{step}/after"] = {n: v.numpy() for n, v in variables.items()}

    def group(self, multiplier: float) -> set[str]:
        """Returns the published names of the variables that learn so much faster."""
        names = {id(slot.variable): name for name, slot in self.places.items()}
        return {
            names[id(v)]
            for group in self.method.param_groups()
            for v in group.variables
            if group.lr_multiplier == multiplier
        }


_steps = functools.lru_cache(maxsize=2)(_Steps)


def _check_step(path: str, quantity: str) -> None:
    case, arrays = _steps(path), load(path)
    if quantity.startswith("group_"):
        multiplier = float(quantity.removeprefix("group_").removesuffix("x"))
        assert case.group(multiplier) == set(arrays[quantity].tolist())
        return None
    actual, kind = case.results[quantity], quantity.split("/")[1]
    if kind in ("grad", "after"):
        limit = _STEP_GRADIENTS if kind == "grad" else _STEP_WEIGHTS
        expected = _part(arrays, quantity + "/")
        assert set(actual) == set(expected)
        for name, value in expected.items():
            near(actual[name], case.places[name].arrange(value), limit)
        return None
    expected = arrays[quantity]
    if kind == "target":
        return np.testing.assert_array_equal(actual, _label(expected))
    if kind == "lr":
        return np.testing.assert_allclose([actual[k] for k in (1.0, 10.0, 20.0)], expected, 1e-6)
    if kind == "student_logits":
        return near(_channels_first(actual), expected, _STEP_LOGITS)
    assert kind == "loss", f"{path} holds {quantity}, which no check knows"
    return near(actual, expected, _STEP_LOSS)


_STEP_INPUTS = {"emb", "n_seen", "n_unseen", "bkg", "base_lr", "max_iter", "lr_decay_iter", "power"}


def _step_quantities(path: str) -> list[str]:
    """One for all gradients of a step, and one for all weights after it."""
    names = {}
    for name in load(path):
        parts = name.split("/")
        if name in _STEP_INPUTS or parts[0] == "before" or parts[-1] in ("x", "labels", "iter"):
            continue
        names["/".join(parts[:2])] = None
    return list(names)


# zs3/selftrain -----------------------------------------------------------------------------------


def _check_share(path: str, quantity: str) -> None:
    arrays = load(path)
    case, _, name = quantity.partition("_")
    probs = tf.nn.softmax(channels_last(arrays[f"{case}_logits"][None]))
    label = tf.argmax(probs, -1).numpy()
    known = arrays[f"{case}_known"]
    options = {"classes": arrays["unseen"].tolist(), "percent": float(arrays[f"{case}_p"])}
    everywhere = np.ones((1, *known.shape), bool)
    values = {
        "argmax": lambda: label,
        "conf": lambda: tf.reduce_max(probs, -1).numpy(),
        "pseudo_all": lambda: most_confident(probs, everywhere, **options),
        "pseudo_with_seen_gt": lambda: most_confident(probs, known[None] == IGNORE, **options),
    }
    actual, expected = np.asarray(values[name]())[0], arrays[quantity]
    if name == "conf":
        return np.testing.assert_allclose(actual, expected, rtol=1e-12)
    if name == "argmax":
        return np.testing.assert_array_equal(actual, expected)
    unlabelled = known if name == "pseudo_with_seen_gt" else IGNORE
    return np.testing.assert_array_equal(np.where(actual >= 0, actual, unlabelled), expected)


def _share_quantities(path: str) -> list[str]:
    inputs = ("logits", "p", "known", "unseen")
    return [name for name in load(path) if name.split("_")[-1] not in inputs]


CASES = {
    "strict/consistency": (_consistency_quantities, _check_consistency),
    "strict/train_step": (_step_quantities, _check_step),
    "zs3/selftrain": (_share_quantities, _check_share),
}
