"""The dense CRF: what it does to a picture that a human can check, shapes, what is refused."""

import subprocess
import sys

import numpy as np
import pytest

from tests.extras import needs_crf
from tests.programs import ROOT, environment
from tfseg.errors import UserError
from tfseg.ops import dense_crf

LPL = dense_crf.LEARNING_PSEUDO_LABELS


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def scene():
    """Two halves of different colours; the probabilities are right but for a noisy spot."""
    image = np.zeros((24, 30, 3), np.uint8)
    image[:, 15:] = 200
    truth = np.zeros((24, 30), int)
    truth[:, 15:] = 1
    probs = np.full((24, 30, 3), 0.2)
    np.put_along_axis(probs, truth[..., None], 0.6, -1)
    probs[4:6, 4:6] = (0.3, 0.5, 0.2)
    return image, truth, probs


@needs_crf
def test_a_spot_of_noise_takes_the_class_of_its_colour():
    image, truth, probs = scene()
    assert (probs.argmax(-1) != truth).sum() == 4
    refined = dense_crf.dense_crf(probs, image, **LPL)
    np.testing.assert_array_equal(refined.argmax(-1), truth)
    assert refined.dtype == np.float32
    np.testing.assert_allclose(refined.sum(-1), 1, atol=1e-5)


@needs_crf
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 5)])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_without_weights_the_clipped_probabilities_stay(size, classes):
    rng = np.random.default_rng(0)
    probs = softmax(rng.normal(0, 8, (*size, classes)))
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    off = {**LPL, "gaussian_compat": 0.0, "bilateral_compat": 0.0}
    clipped = np.clip(probs, 1e-5, 1)
    refined = dense_crf.dense_crf(probs, image, **off)
    np.testing.assert_allclose(refined, clipped / clipped.sum(-1, keepdims=True), atol=1e-5)


@needs_crf
def test_each_setting_counts():
    image, _, probs = scene()
    image[::2, ::3] += 20
    found = [dense_crf.dense_crf(probs, image, **LPL)]
    for name, value in LPL.items():
        refined = dense_crf.dense_crf(probs, image, **{**LPL, name: value / 2 if value > 1 else 3})
        assert max(np.abs(refined - found[0]).max(), 0) > 1e-4, name
        found.append(refined)
    assert np.abs(dense_crf.dense_crf(probs, image, **LPL, clip=0.4) - found[0]).max() > 1e-4


@needs_crf
def test_the_image_may_be_any_view_of_memory():
    image, _, probs = scene()
    expected = dense_crf.dense_crf(probs, image, **LPL)
    flipped = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    actual = dense_crf.dense_crf(np.asfortranarray(probs), flipped, **LPL)
    np.testing.assert_array_equal(actual, expected)
    image.setflags(write=False)
    np.testing.assert_array_equal(dense_crf.dense_crf(probs, image, **LPL), expected)


@needs_crf
def test_a_class_that_may_not_be_there_is_never_the_label():
    image, _, probs = scene()
    present = np.array([0.0, 0.0, 1.0])
    number, labels = dense_crf.refined_labels((7, probs, image, present), **LPL)
    assert number == 7 and labels.dtype == np.int32 and (labels == 2).all()
    _, free = dense_crf.refined_labels((7, probs, image, None), **LPL)
    assert (free == dense_crf.dense_crf(probs, image, **LPL).argmax(-1)).all()
    assert not (free == 2).any()


@pytest.mark.parametrize("image", [np.zeros((24, 29, 3), np.uint8), np.zeros((24, 30, 3))])
def test_an_image_that_does_not_fit_is_a_defect(image):
    with pytest.raises(ValueError, match="uint8"):
        dense_crf.dense_crf(scene()[2], image, **LPL)


def test_the_constants_of_slrnet_differ_in_two():
    changed = {k for k in LPL if dense_crf.SLRNET[k] != LPL[k]}
    assert changed == {"iterations", "bilateral_sxy"}


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    assert not dense_crf.is_installed()
    with pytest.raises(UserError) as error:
        dense_crf.dense_crf(*reversed(scene()[::2]), **LPL)
    for word in ("pip install '.[crf]'", "3.10 to 3.12", "C++ compiler", "--dense_crf"):
        assert word in str(error.value)


def test_worker_processes_are_spared_tensorflow():
    code = "import sys, tfseg.ops.dense_crf; sys.exit('tensorflow' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment())
    assert process.returncode == 0
