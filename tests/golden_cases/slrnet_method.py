"""Golden case `slrnet/train`: the method's losses, pseudo masks and gradients on given features.

The network is ours, but for its backbone, which gives the features of the file, and its three
heads, single 1x1 convolutions there. It runs as in evaluation: no dropout, the gate's mean.
"""

import functools
import pathlib
import re

import numpy as np
import tensorflow as tf

from tests.golden_cases.lpl_model import channels_last, load, parameters_of
from tests.golden_cases.slrnet_model import assert_gradient, assert_near, channels_first
from tfseg.data.specs import DatasetSpec
from tfseg.methods.slrnet import Images, SLRNet
from tfseg.models.heads.low_rank import Features, LowRankHead, LowRankNet
from tfseg.models.layers.settings import Settings
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.methods.slrnet import SLRNetConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import changed
from tfseg.settings.run import TrainConfig

IGNORE = 255
_SUPERVISION = {
    "slrnet": "image_labels",
    "coco": "image_labels",
    "semi": "pixel_and_image_labels",
    "semi_wo": "pixel_labels",
}
_INPUTS = {
    "f1",
    "f2",
    "shallow1",
    "shallow2",
    "image_hw",
    "image_raw",
    "labels",
    "seg_onehot",
    "indicator",
    "loss_coeff",
    "class_weights",
}
# Refined masks; the iterations magnify differences.
_REFINED = 1e-4


class _Pointwise(tf.keras.layers.Layer):
    """A 1x1 convolution that stands for a head, whatever else the head is given."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray):
        super().__init__()
        self.kernel = tf.Variable(kernel[:, :, 0, 0].T)
        self.bias = tf.Variable(bias)

    def call(self, x, *others, training=False, dropout_seed=None):
        return tf.tensordot(x, self.kernel, 1) + self.bias


class _NoBackbone(tf.Module):
    """Stands where the method looks for layers to freeze."""

    scope = "none"


class _Network(LowRankNet):
    """SLRNet's network on given features."""

    def __init__(self, arrays, parameters, config: ModelConfig, num_classes: int):
        tf.keras.Model.__init__(self, name="golden", autocast=False)
        self.config, self.backbone = config, _NoBackbone()
        self.views = [
            (tf.Variable(channels_last(arrays[f"f{i}"])), channels_last(arrays[f"shallow{i}"]))
            for i in (1, 2)
        ]
        self._full_size = tuple(int(n) for n in arrays["image_hw"])
        channels = arrays["f1"].shape[1]
        self.head = LowRankHead(Settings(), config, channels, channels, num_classes)
        for part, name in (
            ("auxiliary", "aux_head"),
            ("last", "last_conv"),
            ("global_cue", "shallow_mask.c"),
        ):
            stand_in = _Pointwise(parameters[f"{name}.weight"], parameters[f"{name}.bias"])
            setattr(self.head, part, stand_in)
        for i, transform in enumerate(self.head.low_rank.transforms, start=1):
            name = f"factorization_reconstruction.transform{i}"
            transform.kernel.assign(parameters[f"{name}.weight"].T[None, None])
            transform.bias.assign(parameters[f"{name}.bias"])

    def features(self, image, training=False, dropout_seed=None, input_scale=1.0):
        first = tuple(image.shape[1:3]) == self._full_size
        return Features(*self.views[0 if first else 1])

    def two_views(self, image, training=False, **options):
        return super().two_views(image, training=False, **options)


def _kind(path: str) -> str:
    return re.fullmatch(r"train_(.+)_\d+", pathlib.Path(path).stem).group(1)


class _Case:
    """The method on a file's inputs."""

    def __init__(self, path: str):
        self._path, self.arrays, self.kind = path, load(path), _kind(path)
        arrays = self.arrays
        num_classes = arrays["labels"].shape[1] + 1
        supervision = _SUPERVISION[self.kind]
        options = {}
        if self.kind == "coco":
            options = {"cutoff_top": 0.5, "cutoff_low": 0.1, "pseudo_mask_rule": "foreground"}
            options["positive_weights"] = tuple(10.0 * float(w) for w in arrays["class_weights"])
        settings = SLRNetConfig(
            supervision=supervision,
            loss_coefficients=tuple(float(c) for c in arrays["loss_coeff"]),
            pretrain_steps=1,
            **options,
        )
        self.config = SLRNet.network_config(ModelConfig(), settings)
        self.network = self._network()
        self.method = SLRNet(
            build_model=lambda: self.network,
            spec=DatasetSpec("golden", tuple(f"class{i}" for i in range(num_classes))),
            config=TrainConfig(method="slrnet"),
            settings=settings,
        )
        self.images = self._images(num_classes)

    def _network(self, **changes) -> _Network:
        config = changed(self.config, **changes)
        parameters = parameters_of(self._path)
        return _Network(self.arrays, parameters, config, self.arrays["labels"].shape[1] + 1)

    def _images(self, num_classes: int) -> Images:
        arrays = self.arrays
        image = channels_last(arrays["image_raw"]) * 255.0
        shape = image.shape[:3]
        label = np.full(shape, IGNORE, np.int32)
        if arrays["seg_onehot"].size:
            one_hot = arrays["seg_onehot"]
            label = np.where(one_hot.sum(1) > 0, one_hot.argmax(1), IGNORE).astype(np.int32)
        return Images(
            image=image,
            image_label=None if self.kind == "semi_wo" else tf.constant(arrays["labels"]),
            label=tf.constant(label),
            has_label=tf.constant(arrays["indicator"]),
            hidden_label=tf.constant(label),
            valid=tf.ones(shape),
        )

    @functools.cached_property
    def output(self):
        return self.network.two_views(self.images.image)

    @functools.cached_property
    def label(self):
        return self.method.pseudo_mask(self.images, self.output)

    @functools.cached_property
    def segmentation(self):
        return self.method.segmentation_losses(self.images, self.output, self.label)

    def total(self, step: int):
        """Returns the sum of the losses after some steps."""
        output = self.network.two_views(self.images.image)
        label = self.method.pseudo_mask(self.images, output)
        segmentation = self.method.segmentation_losses(self.images, output, label)
        losses = self.method.weighted_losses(
            self.images, output, segmentation, tf.constant(step, tf.int64)
        )
        return tf.add_n(list(losses.values()))

    def gradient(self, name: str):
        head = self.network.head
        if name in ("f1", "f2"):
            source = self.network.views[int(name[1]) - 1][0]
        elif "transform" in name:
            layer = head.low_rank.transforms[int(name[name.index("transform") + 9]) - 1]
            source = layer.kernel if name.endswith("weight") else layer.bias
        else:
            part = {"aux": "auxiliary", "las": "last", "sha": "global_cue"}[name[:3]]
            layer = getattr(head, part)
            source = layer.kernel if name.endswith("weight") else layer.bias
        with tf.GradientTape() as tape:
            total = self.total(1)
        gradient = np.asarray(tape.gradient(total, source))
        if name in ("f1", "f2"):
            return channels_first(gradient)
        return gradient[..., :, :].T if name.endswith("weight") else gradient

    def at_full_size(self, mask):
        return resize_bilinear(mask, self.images.image.shape[1:3])

    def present(self, mask):
        """Applies the image-level labels where the regime has them."""
        if self.images.image_label is None:
            return mask
        return (
            mask
            * tf.pad(self.images.image_label, [[0, 0], [1, 0]], constant_values=1.0)[:, None, None]
        )

    def evaluated(self, views: int):
        """Returns class scores and masks of the network as it is evaluated."""
        network = self._network(low_rank_test_views=views)
        result = network(self.images.image)
        masks = tf.nn.softmax(result["logits"])
        if self.kind == "semi_wo":
            # The published network gives every class the score 1 then, which filters nothing.
            assert "image_logits" not in result
            result["image_logits"] = tf.ones(self.arrays["labels"].shape)
        return result["image_logits"], channels_first(self.at_full_size(masks))


_case = functools.lru_cache(maxsize=2)(_Case)


def _check(path: str, quantity: str) -> None:
    case, expected = _case(path), load(path)[quantity]
    method, images, output = case.method, case.images, case.output
    if quantity.startswith("grad_"):
        gradient = case.gradient(quantity.removeprefix("grad_"))
        return assert_gradient(gradient.reshape(expected.shape), expected)
    if quantity.startswith("eval_"):
        scores, masks = case.evaluated(1 if "single" in quantity else 2)
        if quantity.endswith("masks"):
            return assert_near(masks, expected)
        # (The published code gives one class too many in one regime.)
        return assert_near(scores, expected[:, : scores.shape[1]])
    if quantity == "pseudo":
        one_hot = np.eye(expected.shape[1] + 1, dtype=np.uint8)[:, :-1]
        label = np.where(case.label == IGNORE, expected.shape[1], case.label)
        return np.testing.assert_array_equal(channels_first(one_hot[label]), expected)
    if quantity == "dec":
        refined = method.refined_mask(images, output)
        if case.kind == "coco":
            refined /= tf.reduce_max(refined, [1, 2], keepdims=True) + 1e-6
        actual = channels_first(refined)
        return np.testing.assert_allclose(actual, expected, rtol=_REFINED, atol=_REFINED)
    if quantity == "cam":
        mask = case.present(case.at_full_size(method.mean_mask(output)))
        return assert_near(channels_first(mask), expected)
    if quantity == "cls_loss":
        losses = method.class_losses(images, output, case.segmentation)
        return assert_near(losses if expected.size > 1 else [tf.reduce_mean(losses)], expected)
    values = {
        "logits1": lambda: channels_first(output.logits[0]),
        "logits2": lambda: channels_first(output.logits[1]),
        "masks1": lambda: channels_first(tf.nn.softmax(output.logits[0])),
        "masks2": lambda: channels_first(tf.nn.softmax(output.logits[1])),
        "dictionary": lambda: output.bases,
        "seg_loss": lambda: case.segmentation,
        "seg_loss_strong": lambda: method.labelled_mean(case.segmentation, images.has_label),
        "mask_reg_loss": lambda: [method.mask_consistency(images, output)],
        "code_reg_loss": lambda: [method.code_consistency(output)],
        "total_pretrain": lambda: case.total(0),
        "total_full": lambda: case.total(1),
    }
    return assert_near(values[quantity](), expected)


def _quantities(path: str) -> list[str]:
    return [k for k in load(path) if k not in _INPUTS and not k.startswith("param_")]


CASES = {"slrnet/train": (_quantities, _check)}
