"""Fully connected CRF with Gaussian edges: probabilities sharpened along the edges of an image.

Mean field: Q = softmax(-U), then Q = softmax(-U + sum_k compat_k n_k F_k(n_k Q)) as often as asked
for, with U = -log p. F_1 is a Gaussian filter over positions, F_2 one over positions and colours,
n_k = F_k(1)^-1/2.

The filters are those of `pydensecrf2` (extra `[crf]`), which approximates them on a permutohedral
lattice. An exact filter is no substitute: on small images up to 5 % of the labels come out
differently. Worker processes import this module, and therefore it does without TensorFlow.

Source: Kraehenbuehl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge
potentials", NeurIPS 2011; Learning Pseudo Labels specification 6, SLRNet specification 6.
"""

import sys
from typing import Any

import numpy as np

from tfseg.errors import UserError

# Settings of `dense_crf` with which published systems work.
LEARNING_PSEUDO_LABELS = {
    "iterations": 1,
    "gaussian_sxy": 3.0,
    "gaussian_compat": 3.0,
    "bilateral_sxy": 32.0,
    "bilateral_srgb": 13.0,
    "bilateral_compat": 10.0,
}
SLRNET = {**LEARNING_PSEUDO_LABELS, "iterations": 10, "bilateral_sxy": 80.0}


def _library() -> Any:
    """Returns the module of pydensecrf2.

    Raises:
      UserError: it is not installed.
    """
    try:
        import pydensecrf.densecrf
    except ImportError:
        raise UserError(
            "The dense CRF needs pydensecrf2, which is not installed.",
            where="--dense_crf",
            received=f"Python {sys.version_info[0]}.{sys.version_info[1]} without it",
            accepted="Python 3.10 to 3.12: pydensecrf2 cannot be built for 3.13 or newer",
            fix="pip install '.[crf]', which compiles it and needs a C++ compiler such as g++; or "
            "leave out --dense_crf",
        ) from None
    return pydensecrf.densecrf


def require() -> None:
    """Insists that the extra [crf] is installed.

    Raises:
      UserError: it is not.
    """
    _library()


def is_installed() -> bool:
    """Whether the extra [crf] is installed."""
    try:
        require()
    except UserError:
        return False
    return True


def dense_crf(
    probs: np.ndarray,
    image: np.ndarray,
    *,
    iterations: int,
    gaussian_sxy: float,
    gaussian_compat: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_compat: float,
    clip: float = 1e-5,
) -> np.ndarray:
    """Refines the class probabilities of one image.

    Args:
      probs: float [H, W, C]; probabilities, or scores that do not sum to 1 (SLRNet's).
      image: uint8 RGB [H, W, 3].
      iterations: of the mean field.
      gaussian_sxy: standard deviation of the position kernel, pixels.
      gaussian_compat: its weight.
      bilateral_sxy: standard deviation of the other kernel in position, pixels.
      bilateral_srgb: and in colour, grey levels.
      bilateral_compat: its weight.
      clip: scores are clipped to [clip, 1] before the logarithm.

    Returns:
      float32 [H, W, C], sums to 1.

    Raises:
      UserError: pydensecrf2 is not installed.
      ValueError: the shapes do not fit, or the image is not uint8.

    Source: Learning Pseudo Labels specification 6. Deviation: the published programs take the
      image back from its normalised form, which lowers some values by one (they truncate);
      callers here pass the image itself.
    """
    height, width, classes = probs.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"the image must be uint8 [{height}, {width}, 3], is {image.dtype} {list(image.shape)}"
        )
    energy = -np.log(np.clip(np.asarray(probs, np.float32), clip, 1.0))
    crf = _library().DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(np.moveaxis(energy, -1, 0).reshape(classes, -1)))
    crf.addPairwiseGaussian(sxy=gaussian_sxy, compat=gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=bilateral_sxy,
        srgb=bilateral_srgb,
        # A copy, because the library takes no array that is read-only, as Pillow's are.
        rgbim=np.array(image, order="C"),
        compat=bilateral_compat,
    )
    refined = np.array(crf.inference(iterations), np.float32)
    return np.moveaxis(refined.reshape(classes, height, width), 0, -1)


def refined_labels(
    task: tuple[int, np.ndarray, np.ndarray, np.ndarray | None], **settings: Any
) -> tuple[int, np.ndarray]:
    """Returns the labels of one image after the CRF; made to be sent to worker processes.

    Args:
      task: number of the image; probabilities and image as for `dense_crf`; float [C] of 1 for
        classes that may be in the image and 0 for others, or None.
      **settings: of `dense_crf`.

    Returns:
      The number of the image and int32 [H, W].
    """
    number, probs, image, present = task
    refined = dense_crf(probs, image, **settings)
    if present is not None:
        # The clip leaves absent classes a little of every pixel.
        refined = np.where(np.asarray(present) > 0, refined, -1.0)
    return number, refined.argmax(-1).astype(np.int32)
