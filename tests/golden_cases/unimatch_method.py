"""Golden case `unimatch/d`: two steps of UniMatch on a tiny ResNet with DeepLabv3+'s head.

The trainer runs them, on the file's images, boxes and dropped channels. PyTorch's count of batches
(`num_batches_tracked`) has no counterpart here.

Where the input of a ReLU is zero but for rounding, one computation has its gradient and another has
not, and all layers before it show that. Such places are found, and the gradient of each is taken
as the file has it: with it or without.
"""

import dataclasses
import functools
import itertools

import numpy as np
import tensorflow as tf

from tests.golden_cases.unimatch_data import load
from tests.golden_cases.unimatch_losses import channels_last, settings_of, spec_of, stream_of
from tfseg.methods.unimatch import UniMatch
from tfseg.models.backbones.base import unit_names
from tfseg.models.backbones.resnet_s import ResNetS
from tfseg.models.heads.parts import ASPP, DecoderStage, Logits, head_settings
from tfseg.models.layers.settings import Settings
from tfseg.settings.methods.weak_to_strong import UniMatchConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig
from tfseg.training.trainer import Trainer
from tfseg.weights.torch_layout import backbone_slots, slots

STEPS = 2
_LOSSES, _WEIGHTS = 2e-5, 5e-6
# Relative to the largest gradient of a tensor; ten times what two computations differ by.
_GRADIENTS = 2e-4
_DEAD = 1e-6
# Inputs of a ReLU that are nearer to 0 may have another sign in another computation.
_ROUNDING = 4e-6
_MOST_PLACES = 5
_WEIGHT_DECAY = 1e-4
_BACKBONE = "backbone."
_MASKS = ("dropout_mask_low", "dropout_mask_high")
_UNKNOWN = "num_batches_tracked"


class _SidedReLU:
    """ReLU whose gradient where the input is zero but for rounding can be set from outside.

    Attributes:
      near: int32 [calls], how many inputs of each call were so.
      side: float32 [calls], the gradient there; negative: as the sign says.
    """

    def __init__(self, calls=512):
        self.near = tf.Variable(tf.zeros([calls], tf.int32))
        self.side = tf.Variable(-tf.ones([calls]))
        self._calls = 0

    def __call__(self, x):
        number, self._calls = self._calls, self._calls + 1
        near, side = tf.abs(x) < _ROUNDING, tf.convert_to_tensor(self.side)[number]
        self.near.scatter_nd_update([[number]], [tf.reduce_sum(tf.cast(near, tf.int32))])
        passes = tf.where(near & (side >= 0), side, tf.cast(x > 0, tf.float32))
        return _relu(x, tf.stop_gradient(passes))


@tf.custom_gradient
def _relu(x, passes):
    return tf.nn.relu(x), lambda upstream: (upstream * passes, None)


class _Tiny(tf.keras.Model):
    """The published network in the widths of the file; its images are normalised already."""

    def __init__(self, arrays):
        super().__init__(name="model", autocast=False)

        def width(name):
            return arrays[f"init/{name}.weight"].shape[0]

        self.relu = _SidedReLU()
        settings = Settings(momentum=0.9, activation=self.relu)
        self.backbone = ResNetS(
            settings,
            "resnet50s",
            output_stride=16,
            multi_grid=None,
            bounded=False,
            units=arrays["blocks"].tolist(),
            stem=[width(f"backbone.conv1.{i}") for i in (0, 3, 6)],
            bottlenecks=[width(f"backbone.layer{i}.0.conv1") for i in (1, 2, 3, 4)],
        )
        config = ModelConfig(
            atrous_rates=tuple(arrays["aspp_rates"].tolist()),
            aspp_with_separable_conv=False,
            aspp_convs_filters=width("head.b0.0"),
            aspp_dropout_rate=0.0,
            decoder_output_stride=(4,),
            decoder_filters=width("fuse.0"),
            decoder_use_separable_conv=False,
        )
        heads, channels = head_settings(settings), self.backbone.channels
        self.aspp = ASPP(heads, config, channels["layer4"])
        self.stage = DecoderStage(
            heads,
            config,
            self.aspp.out_channels,
            channels["layer1"],
            suffix="",
            num_logits=None,
            projection_filters=width("reduce.0"),
        )
        self.logits = Logits(heads, config, self.stage.out_channels, int(arrays["num_classes"]))
        self.decoder_inputs = ("layer1", "layer4")

    def encode(self, image, training=False, dropout_seed=None):
        return self.backbone(image, training=training)

    def decode(self, ends, training=False, dropout_seed=None):
        x, _ = self.aspp(ends["layer4"], training=training)
        x, _ = self.stage(x, ends["layer1"], training=training)
        return {"logits": self.logits(x)}

    def call(self, image, training=False, dropout_seed=None):
        return self.decode(self.encode(image, training=training), training=training)


class _GivenDropout(UniMatch):
    """UniMatch that drops the channels of the file."""

    def losses(self, batch, step, seed, monitors):
        self._masks = [batch["unlabelled"][name] for name in _MASKS]
        return super().losses(batch, step, seed, monitors)

    def dropped_features(self, ends, seed):
        return {
            name: ends[name] * mask[:, None, None, :]
            for name, mask in zip(self.model.decoder_inputs, self._masks)
        }


def batch_of(arrays, step, *, donors=("",), given=()):
    """Returns the batch of a step.

    Args:
      arrays: of the file.
      step: its number.
      donors: endings of the unlabelled streams' names.
      given: names of arrays that the unlabelled stream carries along.
    """
    of_step = {
        name.removeprefix(f"step{step}/"): value
        for name, value in arrays.items()
        if name.startswith(f"step{step}/")
    }
    images = {f"img_{name}": of_step[name] for name in of_step if name.startswith(("s1", "s2"))}
    streams = {}
    for donor in donors:
        stream = stream_of({**of_step, **images}, donor)
        stream["image"] = tf.constant(channels_last(of_step[f"weak{donor}"]))
        streams[donor] = stream
    streams[""] |= {name: tf.constant(of_step[name]) for name in given}
    names = {"": "unlabelled", "_donor": "donor"}
    return {
        "labelled": {
            "image": tf.constant(channels_last(of_step["x"])),
            "label": tf.constant(of_step["y"].astype(np.int32)),
        },
        **{names[donor]: stream for donor, stream in streams.items()},
    }


def trainer_of(method, config, strategy, batches):
    """Returns a trainer whose steps see these batches in turn."""
    together = tf.nest.map_structure(lambda *x: tf.stack(x), *batches)
    dataset = tf.data.Dataset.from_tensor_slices(together)
    iterator = iter(strategy.distribute_datasets_from_function(lambda context: dataset))
    return Trainer(method=method, strategy=strategy, config=config, iterator=iterator)


def _head_slots(model):
    """Finds the places of the tensors of UniMatch's ASPP, decoder and logits.

    The model has three atrous rates, one decoder stage and plain convolutions.

    Source: UniMatch specification 3.2. The image pooling is the last part of the first
    concatenation there and the first here; the low-level feature comes first in the second there
    and last here.
    """
    names = {}
    for i in range(4):
        names |= unit_names(f"aspp{i}", f"head.b{i}.0", f"head.b{i}.1")
    names |= unit_names("image_pooling", "head.b4.gap.1", "head.b4.gap.2")
    names |= unit_names("concat_projection", "head.project.0", "head.project.1")
    names |= unit_names("decoder/feature_projection0", "reduce.0", "reduce.1")
    names |= unit_names("decoder/decoder_conv0", "fuse.0", "fuse.1")
    names |= unit_names("decoder/decoder_conv1", "fuse.3", "fuse.4")
    names["logits/semantic"] = "classifier"
    result = slots(model, names)
    projection = result["head.project.0.weight"]
    # All parts have as many channels as the projection's result.
    moved = {"head.project.0.weight": projection.variable.shape[3]}
    fuse, reduce = result["fuse.0.weight"].variable, result["reduce.0.weight"].variable
    moved["fuse.0.weight"] = fuse.shape[2] - reduce.shape[3]
    for name, shift in moved.items():
        result[name] = dataclasses.replace(result[name], shift=shift)
    return result


def _slots(model):
    backbone = {_BACKBONE + name: slot for name, slot in backbone_slots(model.backbone).items()}
    return {**backbone, **_head_slots(model)}


@functools.lru_cache(maxsize=2)
def _steps(path):
    """Runs the steps; returns what they gave by the file's names, and the places of tensors."""
    arrays = load(path.replace("_expected", "_inputs"))
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    settings = settings_of(UniMatchConfig, arrays["threshold"], arrays["ohem_min_kept"])
    multiplier = {"new_layers_learning_rate_multiplier": float(arrays["head_multiplier"])}
    config = TrainConfig(
        base_learning_rate=float(arrays["lr"]),
        learning_rate_lag_steps=1,
        training_number_of_steps=int(arrays["total_steps"]),
        weight_decay=_WEIGHT_DECAY,
    )
    with strategy.scope():
        model = _Tiny(arrays)
        batches = [
            batch_of(arrays, step, donors=("", "_donor"), given=_MASKS) for step in range(STEPS)
        ]
        model(batches[0]["labelled"]["image"])
        places = _slots(model)
        for name, slot in places.items():
            slot.variable.assign(slot.arrange(arrays[f"init/{name}"]))
        method = _GivenDropout(
            build_model=lambda: model,
            spec=spec_of(int(arrays["num_classes"])),
            config=config,
            settings=type(settings)(**{**vars(settings), **multiplier}),
        )
    trainer = trainer_of(method, config, strategy, batches)
    expected = {**load(path.replace("_inputs", "_expected")), **arrays}
    found = {}
    for step, batch in enumerate(batches):
        found |= _nearest_step(trainer, strategy, batch, step, places, expected)
    return found, places


def _nearest_step(trainer, strategy, batch, step, places, expected):
    """Runs a step as often as there are gradients that rounding decides; returns the nearest."""
    relu, state = trainer.method.model.relu, _state_of(trainer)
    before = [variable.numpy() for variable in state]
    dataset = tf.data.Dataset.from_tensors(batch)

    def run(sides):
        for variable, value in zip(state, before):
            variable.assign(value)
        relu.side.assign(-tf.ones_like(relu.side))
        for number, side in sides.items():
            relu.side[number].assign(side)
        trainer.iterator = iter(strategy.distribute_datasets_from_function(lambda _: dataset))
        return _found_in_step(trainer, step, places)

    results = [run({})]
    unsure = np.flatnonzero(relu.near.numpy())[:_MOST_PLACES].tolist()
    if _excess(results[0], places, expected) > 1.0:
        for sides in itertools.product((0.0, 1.0), repeat=len(unsure)):
            results.append(run(dict(zip(unsure, sides))))
    excess = [_excess(result, places, expected) for result in results]
    best = int(np.argmin(excess))
    # The next step starts where the nearest one ended.
    sides = [{}, *(dict(zip(unsure, s)) for s in itertools.product((0.0, 1.0), repeat=len(unsure)))]
    return results[best] if best == len(results) - 1 else run(sides[best])


def _state_of(trainer):
    """Returns everything that a step changes."""
    state = [*trainer.state().values(), *trainer.method.variables]
    return state + [v for optimizer in trainer.optimizers for v in optimizer._slots]


def _found_in_step(trainer, step, places):
    """Trains one step; returns what it gave by the file's names."""
    before = {name: slot.variable.numpy() for name, slot in places.items()}
    interval = trainer.train(1)
    losses = interval.losses
    found = {
        f"step{step}/expected_loss_all": sum(losses.values()),
        f"step{step}/expected_loss_x": 2.0 * losses["segmentation"],
        f"step{step}/expected_loss_s": 4.0 * losses["strong"],
        f"step{step}/expected_loss_w_fp": 4.0 * losses["dropped_features"],
        f"step{step}/expected_mask_ratio": interval.figures["mask_ratio"],
    }
    for name, slot in places.items():
        found[f"after_step{step}/{name}"] = slot.variable.numpy()
    if step == 0:
        # The first momentum is the gradient, weight decay included.
        moments = {
            id(v): m.numpy()
            for group, optimizer in zip(trainer.groups, trainer.optimizers)
            for v, m in zip(group.variables, optimizer._slots)
        }
        for name, slot in places.items():
            if id(slot.variable) in moments:
                decay = _WEIGHT_DECAY * before[name]
                found[f"grad_step0/{name}"] = moments[id(slot.variable)] - decay
    return found


def _excess(found, places, expected):
    """Returns the largest difference of a tensor as a multiple of what is allowed."""
    tensors = [name for name in found if not name.startswith("step") and name in expected]
    return max(
        np.abs(found[name] - places[name.partition("/")[2]].arrange(expected[name])).max()
        / _allowed(name, expected[name])
        for name in tensors
    )


def _allowed(name, expected):
    if name.startswith("grad"):
        return _GRADIENTS * max(np.abs(expected).max(), 1e-4)
    return _WEIGHTS * max(np.abs(expected).max(), 1.0)


def _quantities(path):
    if not path.endswith("_expected.npz"):
        return [name for name in load(path) if "expected" in name and path.endswith("_inputs.npz")]
    return [name for name in load(path) if not name.endswith(_UNKNOWN)]


def _check(path, name):
    found, places = _steps(path.replace("_inputs", "_expected"))
    expected = load(path)[name]
    if name.startswith("step"):
        np.testing.assert_allclose(found[name], expected, rtol=_LOSSES, atol=_LOSSES)
        return
    tensor = name.partition("/")[2]
    expected = places[tensor].arrange(expected)
    np.testing.assert_allclose(found[name], expected, rtol=0, atol=_allowed(name, expected))
    if name.startswith("after") and tensor in ("backbone.layer1.0.bn1.bias", "fuse.1.bias"):
        # A dead channel moves by weight decay alone.
        np.testing.assert_allclose(found[name][0], expected[0], rtol=0, atol=_DEAD)


CASES = {"unimatch/d": (_quantities, _check)}
