"""RandAugment: each operation, its draws, and that masks go through the geometry alone."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tests.test_pipeline import (
    COUNT,
    MEAN,
    STREAM,
    assert_same,
    dataset_of,
    settings,
    take,
    write,
)
from tfseg.data.augment import randaugment
from tfseg.data.stream import Stream

OPERATIONS = randaugment.operations()


def _photograph(height=40, width=50):
    """Returns an image whose neighbours are alike: float32 whole numbers of 30..190, in colour."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(30, 191, [height // 5, width // 5, 3]).astype(np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).astype(np.float32)


def _apply(name, image, strength):
    return OPERATIONS[name](tf.constant(image)[None], tf.constant(strength))[0].numpy()


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_the_image_within_its_range(name):
    image = _photograph()
    results = [_apply(name, image, strength) for strength in (-1.0, 0.999)]
    for result in results:
        assert result.shape == image.shape and result.dtype == np.float32
        assert 0.0 <= result.min() and result.max() <= 255.0
        assert np.abs(result - image).max() > 3.0
    signed = {"color", "contrast", "brightness", "sharpness"}
    assert (np.abs(results[0] - results[1]).max() > 3.0) == (name in signed)


@pytest.mark.parametrize("name", ["solarize", "color", "contrast", "brightness", "sharpness"])
def test_without_strength_the_image_stays(name):
    image = _photograph()
    np.testing.assert_allclose(_apply(name, image, 0.0), image, atol=1e-4)


def test_strengths_are_what_they_are_said_to_be():
    image = _photograph()
    mean = image.mean((0, 1))
    for strength in (-0.5, 0.5):
        expected = np.clip((image - mean) * (1 + 0.9 * strength) + mean, 0, 255)
        np.testing.assert_allclose(_apply("contrast", image, strength), expected, atol=1e-3)
        expected = np.clip(image + 76.0 * strength, 0, 255)
        np.testing.assert_allclose(_apply("brightness", image, strength), expected, atol=1e-3)
        expected = np.where(image < 255 - 63.5, image, 255 - image)
        np.testing.assert_allclose(_apply("solarize", image, strength), expected, atol=1e-3)
    for strength, bits in ((0.0, 7), (-0.3, 6), (0.6, 5), (0.999, 4), (-1.0, 4)):
        step = 2 ** (8 - bits)
        np.testing.assert_array_equal(_apply("posterize", image, strength), image // step * step)
    expected = np.asarray(ImageOps.equalize(Image.fromarray(image.astype(np.uint8))))
    np.testing.assert_array_equal(_apply("equalize", image, 0.5), expected)


def test_images_of_a_few_pixels_and_of_one_colour_pass():
    for size in ((1, 1), (2, 9), (3, 3)):
        image = np.full((*size, 3), 77.0, np.float32)
        for name in OPERATIONS:
            result = _apply(name, image, 0.5)
            assert result.shape == image.shape and np.isfinite(result).all()


def test_draws_are_those_of_the_seed_and_use_every_operation():
    def draws(seed):
        made = randaugment.draw(tf.constant([7, seed], tf.int64), ops=3, choices=len(OPERATIONS))
        return made.operations.numpy(), made.strengths.numpy()

    assert_same(draws(5), draws(5))
    operations, strengths = (np.stack(values) for values in zip(*map(draws, range(60))))
    assert set(operations.ravel()) == set(range(len(OPERATIONS)))
    assert strengths.min() < -0.9 and strengths.max() > 0.9 and (np.abs(strengths) <= 1).all()
    # Neither repeats the other, or the numbers of which the geometry is made.
    assert abs(np.corrcoef(operations.ravel(), strengths.ravel())[0, 1]) < 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("records"))
    write(path, image_labels=[[1 + i % 3] for i in range(COUNT)])
    return path


def _randaugment(folder, **changes):
    return settings(folder, augmentation="randaugment", **changes)


def test_batches_have_the_vocabulary_and_masks_are_deeplabs(folder):
    ours = dataset_of(_randaugment(folder))
    plain = dataset_of(settings(folder, scale_factor_step_size=0.0))
    assert ours.element_spec == plain.element_spec
    changed = 0
    for a, b in zip(take(ours, 5), take(plain, 5)):
        assert 0 <= a["s"]["image"].min() and a["s"]["image"].max() <= 255
        changed += np.sum(np.abs(a["s"]["image"] - b["s"]["image"]).max((1, 2, 3)) > 1)
        # Padding has the mean colour, whatever became of the image.
        assert (a["s"]["image"][a["s"]["valid"] == 0] == MEAN[0]).all()
        for element in (a, b):
            del element["s"]["image"]
        assert_same(a, b)
    assert changed >= 15


def test_without_operations_and_in_light_streams_it_is_deeplabs(folder):
    plain = take(dataset_of(settings(folder, scale_factor_step_size=0.0)), 2)
    light = {"s": Stream("train", STREAM.batch_size, augment="light")}
    for dataset in (
        dataset_of(_randaugment(folder, augmentation_ops=0)),
        dataset_of(_randaugment(folder), light),
    ):
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), take(dataset, 2), plain
        )


def test_a_run_repeats_whatever_the_threads_and_goes_on_where_it_was(folder):
    first = take(dataset_of(_randaugment(folder)), 4)
    assert_same(first, take(dataset_of(_randaugment(folder, data_threads=1)), 4))
    assert_same(first[2:], take(dataset_of(_randaugment(folder), start_step=2), 2))
    other = take(dataset_of(_randaugment(folder), seed=4), 1)
    assert (first[0]["s"]["image"] != other[0]["s"]["image"]).any()
