"""A network says itself which sizes it takes and at which stride its logits are."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.small_split import SPEC, make_images, write_split
from tests.toy import ToyBackbone
from tfseg.runs.load import check_crop_size
from tfseg.data.image_input import UNPADDED, padded_size
from tfseg.errors import UserError
from tfseg.inference.evaluate import Evaluator
from tfseg.inference.merge import SCALE_KERNELS, Views
from tfseg.inference.predictor import Predictor
from tfseg.models import BACKBONES, Network, build_model
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.data import DataConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.prediction import EvalConfig

PATCH, CELL = 14, 7


class PatchNetwork(Network):
    """Cuts the image into patches of 14 pixels, as a vision transformer; logits at half of that."""

    def __init__(self):
        super().__init__(
            ModelConfig(model_variant="toy"),
            num_classes=4,
            num_image_classes=3,
            crop_size=(PATCH, PATCH),
            name="model",
            seed=0,
        )

    def valid_size(self, height, width):
        return -(-height // PATCH) * PATCH, -(-width // PATCH) * PATCH

    @property
    def logits_stride(self):
        return CELL

    def call(self, image, training=False, dropout_seed=None, input_scale=1.0):
        tf.debugging.assert_equal(tf.shape(image)[1:3] % PATCH, [0, 0])
        cells = tf.nn.avg_pool2d(tf.cast(image, tf.float32) / 255.0, CELL, CELL, "VALID")
        return {"logits": tf.concat([cells, 1.0 - cells[..., :1]], -1)}


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)
    return PatchNetwork()


def deeplab(**config):
    sizes = {"num_classes": 4, "num_image_classes": 3, "crop_size": (33, 33)}
    return build_model(ModelConfig(model_variant="toy", **config), **sizes)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_convolutional_networks_take_multiples_of_their_stride_plus_one(monkeypatch, stride):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)
    model = deeplab(output_stride=stride)
    assert model.valid_size(1, 2) == (1, stride + 1)
    assert model.valid_size(stride + 1, stride + 2) == (stride + 1, 2 * stride + 1)
    assert model.logits_stride == stride
    for side in range(1, 200):
        for crop in ((1, 1), (65, 97)):
            size = padded_size((side, 3), crop, model.valid_size)
            expected = crop[0] if side <= crop[0] else -(-(side - 1) // 32) * 32 + 1
            assert size == (expected, 33 if crop == (1, 1) else 97)


def test_a_decoder_makes_logits_finer(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)
    assert deeplab(decoder_output_stride=(4,)).logits_stride == 4


def test_crop_sizes_are_those_of_the_network(network):
    check_crop_size("train_crop_size", (14, 28), network)
    with pytest.raises(UserError, match="(?s)--train_crop_size.*33,28.*42,28 or 56,42"):
        check_crop_size("train_crop_size", (33, 28), network)
    model = deeplab()
    check_crop_size("train_crop_size", (33, 49), model)
    with pytest.raises(UserError, match="(?s)512,500.*513,513 or 529,529"):
        check_crop_size("train_crop_size", (512, 500), model)


def test_larger_images_are_padded_to_what_the_network_takes(network):
    assert padded_size((14, 20), (14, 28), network.valid_size) == (14, 28)
    # 32 + 1 and 64 + 1, up to multiples of 14.
    assert padded_size((15, 34), (14, 28), network.valid_size) == (42, 70)
    assert padded_size((15, 34), UNPADDED, network.valid_size) == (15, 34)


def test_without_a_crop_size_each_image_is_padded_to_its_own_next_size(network):
    assert padded_size((15, 34), None, network.valid_size) == (28, 42)
    assert padded_size((28, 14), None, network.valid_size) == (28, 14)


def test_coarser_views_are_merged_at_the_networks_own_stride(network):
    image = np.random.default_rng(0).uniform(0, 255, [1, 27, 27, 3]).astype(np.float32)
    logits = network(resize_bilinear(tf.constant(image), (14, 14)))["logits"]
    # 26 pixels between the corners are three whole cells.
    merged = resize_bilinear(resize_bilinear(logits, (4, 4)), (27, 27))
    found = Predictor(network, Views((0.5,)), wanted=("probs",))(image).probs
    np.testing.assert_allclose(found, tf.nn.softmax(merged), atol=1e-6)


@pytest.mark.parametrize("kernel", SCALE_KERNELS)
def test_scaled_images_have_sizes_that_the_network_takes(network, kernel):
    """The network insists on it; sides of 28 and 42 give 21 to 53 pixels."""
    image = np.random.default_rng(0).uniform(0, 255, [1, 28, 42, 3]).astype(np.float32)
    views = Views((0.75, 1.0, 1.25), flip=True, scale_kernel=kernel, valid_sizes=True)
    predictor = Predictor(network, views, wanted=("probs",))
    expected = predictor(image).probs
    assert expected.shape == (1, 28, 42, 4)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3])], autograph=False)
    def of_any_size(x):
        return predictor(x).probs

    # Pillow's kernel rounds to bytes, now and then to another one.
    np.testing.assert_allclose(of_any_size(image), expected, atol=1e-3)
    published = Predictor(network, dataclasses.replace(views, valid_sizes=False))
    with pytest.raises(tf.errors.InvalidArgumentError):
        published(image)


def test_evaluation_works_with_another_geometry(network, tmp_path):
    images, labels = make_images()
    write_split(str(tmp_path), images, labels)
    pixels = sum((label != SPEC.ignore_label).sum() for label in labels)
    for settings in ({"eval_crop_size": (14, 28)}, {}, {"eval_scales": (0.7, 1.0)}):
        config = EvalConfig(eval_logdir=str(tmp_path / "eval"), checkpoint_dir="x", **settings)
        strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
        data = DataConfig(dataset_dir=str(tmp_path))
        matrix, *_ = Evaluator(network, strategy, SPEC, data, config).confusion_matrix()
        assert matrix.sum() == pixels
