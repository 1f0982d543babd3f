"""Golden case `unimatch/d`: two steps of UniMatch on a tiny ResNet with DeepLabv3+'s head.

The trainer runs them, on the file's images, boxes and dropped channels. PyTorch's count of batches
(`num_batches_tracked`) has no counterpart here.
"""

import functools

import numpy as np
import tensorflow as tf

from tests.golden_cases.unimatch_data import load
from tests.golden_cases.unimatch_losses import channels_last, settings_of, spec_of, stream_of
from tfseg.methods.unimatch import UniMatch
from tfseg.models.backbones.resnet_s import ResNetS
from tfseg.models.heads.parts import ASPP, DecoderStage, Logits, head_settings
from tfseg.models.layers.settings import Settings
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig
from tfseg.settings.weak_to_strong import UniMatchConfig
from tfseg.training.trainer import Trainer
from tfseg.weights.torch_layout import backbone_slots, unimatch_head_slots

STEPS = 2
_LOSSES, _WEIGHTS = 2e-5, 5e-6
# Relative to the largest gradient of a tensor; ten times what two computations differ by.
_GRADIENTS = 2e-4
_DEAD = 1e-6
_WEIGHT_DECAY = 1e-4
_BACKBONE = "backbone."
_MASKS = ("dropout_mask_low", "dropout_mask_high")
_UNKNOWN = "num_batches_tracked"


class _Tiny(tf.keras.Model):
    """The published network in the widths of the file; its images are normalised already."""

    def __init__(self, arrays):
        super().__init__(name="model", autocast=False)

        def width(name):
            return arrays[f"init/{name}.weight"].shape[0]

        settings = Settings(momentum=0.9)
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


def _slots(model):
    backbone = {_BACKBONE + name: slot for name, slot in backbone_slots(model.backbone).items()}
    return {**backbone, **unimatch_head_slots(model)}


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
    found, before = {}, {name: slot.variable.numpy() for name, slot in places.items()}
    for step in range(STEPS):
        interval = trainer.train(1)
        losses = interval.losses
        found |= {
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
    return found, places


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
    limit = _GRADIENTS if name.startswith("grad") else _WEIGHTS
    atol = limit * max(np.abs(expected).max(), 1.0 if limit == _WEIGHTS else 1e-4)
    np.testing.assert_allclose(found[name], expected, rtol=0, atol=atol)
    if name.startswith("after") and tensor in ("backbone.layer1.0.bn1.bias", "fuse.1.bias"):
        # A dead channel moves by weight decay alone.
        np.testing.assert_allclose(found[name][0], expected[0], rtol=0, atol=_DEAD)


CASES = {"unimatch/d": (_quantities, _check)}
