"""The composed augmentation: some random colour operations, then some random geometric ones.

`draw` makes the decisions of one example from a NumPy generator; `compose` carries them out, and
is otherwise a pure function of arrays. Every operation is one too, and takes its parameter as an
argument. They work on uint8 images: colours by Pillow, whose blending cuts off the fraction,
geometry by OpenCV. TensorFlow has neither, so the pipeline calls `compose` from a
`tf.numpy_function`; both libraries release the interpreter while they work, so calls run side by
side.

OpenCV 4 rounds the coordinates of warps to 1/32 pixel: sheared and rotated images differ from those
of OpenCV 5 by some grey levels, and one pixel in a thousand of their label maps is a neighbour's.

Source: Learning Pseudo Labels, specification section 2 ("strong" augmentation).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from tfseg.data import pixels
from tfseg.data.augment.base import Context, numpy_views, scale_range_of
from tfseg.settings.data import DataConfig

# Ranges of the published configuration, each of a uniform draw: both ends belong to the integers.
# Autocontrast, equalize and invert are blended with their input: 1 leaves the image as it is.
_FACTORS = {
    "autocontrast": (0.0, 1.0),
    "brightness": (0.5, 1.5),
    "color": (0.5, 1.5),
    "contrast": (0.5, 1.5),
    "equalize": (0.5, 1.5),
    "invert": (0.0, 1.0),
    "sharpness": (0.0, 1.0),
    "solarize": (0.0, 1.0),
}
_POSTERIZE_BITS = (1, 8)
_SHEAR = 0.3
_ROTATION_DEGREES = 45

PHOTOMETRIC = (*_FACTORS, "posterize")
GEOMETRIC = ("scale", "flip", "shear", "rotation")

# OpenCV 4 warps no image with a longer side.
MAX_SIDE_PX = 32766


@dataclasses.dataclass(frozen=True)
class Scene:
    """What the geometric operations move together.

    Attributes:
      image: uint8 [H, W, 3].
      valid: uint8 [H, W], 1 where the image was, 0 where an operation brought something in.
      label: uint8 [H, W]; None: there is none.
    """

    image: np.ndarray
    valid: np.ndarray
    label: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class CompositionDraws:
    """The random decisions for one example.

    Attributes:
      photometric: (name, parameter) of each colour operation, in their order.
      geometric: the same of the operations after them: the factor of 'scale', whether 'flip'
        mirrors, the two coefficients of 'shear', the degrees of 'rotation'.
      crop: left and top of the crop, as shares of the room there is, in [0, 1).
    """

    photometric: tuple[tuple[str, float | int], ...]
    geometric: tuple[tuple[str, float | bool | int | tuple[float, float]], ...]
    crop: tuple[float, float]


# Draws ------------------------------------------------------------------------------------------


def _draw_photometric(rng: np.random.Generator, name: str) -> float | int:
    if name == "posterize":
        return int(rng.integers(_POSTERIZE_BITS[0], _POSTERIZE_BITS[1], endpoint=True))
    return float(rng.uniform(*_FACTORS[name]))


def _draw_geometric(
    rng: np.random.Generator,
    name: str,
    scale_range: tuple[float, float],
    flip_probability: float,
) -> float | bool | int | tuple[float, float]:
    if name == "scale":
        return float(rng.uniform(*scale_range))
    if name == "flip":
        return bool(rng.random() < flip_probability)
    if name == "shear":
        return tuple(rng.uniform(-_SHEAR, _SHEAR, 2).tolist())
    return int(rng.integers(-_ROTATION_DEGREES, _ROTATION_DEGREES, endpoint=True))


def draw(
    rng: np.random.Generator,
    *,
    ops: int,
    scale_range: tuple[float, float] = (0.5, 2.0),
    flip_probability: float = 0.5,
) -> CompositionDraws:
    """Makes the decisions of one example.

    Args:
      rng: the only source of chance.
      ops: how many operations in all; a number of them uniform on 0 .. `ops` is photometric, the
        others are geometric; each is drawn from all of its kind, so that one may come twice.
      scale_range: smallest and largest factor of 'scale'.
      flip_probability: that 'flip' mirrors.

    Source: Learning Pseudo Labels, specification section 2; the defaults are the published ones.
    """
    photometric = int(rng.integers(0, ops, endpoint=True))
    names = [PHOTOMETRIC[i] for i in rng.integers(len(PHOTOMETRIC), size=photometric)]
    moves = [GEOMETRIC[i] for i in rng.integers(len(GEOMETRIC), size=ops - photometric)]
    return CompositionDraws(
        photometric=tuple((name, _draw_photometric(rng, name)) for name in names),
        geometric=tuple(
            (name, _draw_geometric(rng, name, scale_range, flip_probability)) for name in moves
        ),
        crop=tuple(rng.random(2).tolist()),
    )


# Colours ----------------------------------------------------------------------------------------


def adjust_colors(image: np.ndarray, name: str, parameter: float | int) -> np.ndarray:
    """Applies one photometric operation.

    Args:
      image: uint8 [H, W, 3], RGB.
      name: one of `PHOTOMETRIC`.
      parameter: 'brightness', 'color', 'contrast', 'sharpness': factor on the distance from black,
        from grey, from the mean grey, from the smoothed image; 'autocontrast', 'equalize',
        'invert': share of the unchanged image, above 1 beyond it; 'solarize': share of 255 from
        which on values are inverted; 'posterize': bits that are kept, an integer.

    Returns:
      uint8 [H, W, 3].
    """
    given = Image.fromarray(image)
    if name == "autocontrast":
        result = Image.blend(ImageOps.autocontrast(given), given, parameter)
    elif name == "equalize":
        result = Image.blend(ImageOps.equalize(given), given, parameter)
    elif name == "invert":
        result = Image.blend(ImageOps.invert(given), given, parameter)
    elif name == "brightness":
        result = ImageEnhance.Brightness(given).enhance(parameter)
    elif name == "color":
        result = ImageEnhance.Color(given).enhance(parameter)
    elif name == "contrast":
        result = ImageEnhance.Contrast(given).enhance(parameter)
    elif name == "sharpness":
        result = ImageEnhance.Sharpness(given).enhance(parameter)
    elif name == "solarize":
        result = ImageOps.solarize(given, 255.0 * parameter)
    elif name == "posterize":
        result = ImageOps.posterize(given, int(parameter))
    else:
        raise ValueError(f"unknown photometric operation '{name}'")
    return np.asarray(result)


# Geometry ---------------------------------------------------------------------------------------


def _each(scene: Scene, of_image: Callable, of_map: Callable) -> Scene:
    """Applies one function to the image of a scene and another to its maps."""
    label = None if scene.label is None else of_map(scene.label)
    return Scene(image=of_image(scene.image), valid=of_map(scene.valid), label=label)


def scale(scene: Scene, factor: float, *, max_pixels: float = math.inf) -> Scene:
    """Resizes a scene: cubic for the image, nearest for the maps.

    Args:
      scene: sides of H and W pixels.
      factor: on both sides; taken smaller where the result had more than `max_pixels` or a side
        that could not be warped.
      max_pixels: limit of the area, in pixels; at least the scene's.

    Returns:
      A scene with sides of factor H and factor W pixels, rounded, at least 1.

    Source: Learning Pseudo Labels, specification section 2; the limits are ours, for its factors
    multiply when they are drawn several times.
    """
    height, width = scene.image.shape[:2]
    limit = min(math.sqrt(max_pixels / (height * width)), MAX_SIDE_PX / max(height, width))
    factor = min(factor, max(limit, 1.0))
    if min(round(height * factor), round(width * factor)) > 0:
        # Pixel i is taken at (i + 1/2) / factor, not at (i + 1/2) old / new side.
        size = {"dsize": None, "fx": factor, "fy": factor}
    else:
        size = {"dsize": [max(1, round(side * factor)) for side in (width, height)]}
    return _each(
        scene,
        lambda image: cv2.resize(image, **size, interpolation=cv2.INTER_CUBIC),
        lambda x: cv2.resize(x, **size, interpolation=cv2.INTER_NEAREST),
    )


def flip(scene: Scene) -> Scene:
    """Mirrors a scene left and right."""
    return _each(scene, lambda x: cv2.flip(x, 1), lambda x: cv2.flip(x, 1))


def _warp(
    scene: Scene, matrix: np.ndarray, *, mean_pixel: Sequence[float], ignore_label: int
) -> Scene:
    """Moves each pixel (x, y) to matrix (x, y, 1), within the frame of the scene."""
    size = scene.image.shape[1::-1]
    color = tuple(int(channel) for channel in mean_pixel)

    def warped(x: np.ndarray, interpolation: int, border: int | tuple[int, ...]) -> np.ndarray:
        return cv2.warpAffine(x, matrix, size, flags=interpolation, borderValue=border)

    label = scene.label
    return Scene(
        image=warped(scene.image, cv2.INTER_CUBIC, color),
        valid=warped(scene.valid, cv2.INTER_NEAREST, 0),
        label=None if label is None else warped(label, cv2.INTER_NEAREST, ignore_label),
    )


def shear(
    scene: Scene,
    coefficients: tuple[float, float],
    *,
    mean_pixel: Sequence[float],
    ignore_label: int,
) -> Scene:
    """Shears a scene along both axes.

    Args:
      scene: sides of H and W pixels.
      coefficients: x of y and y of x.
      mean_pixel: fills the image, without its fraction, where nothing was.
      ignore_label: fills the label map there.

    Source: Learning Pseudo Labels, specification section 2. The shift takes width for height and
    the reverse, as published, so that the centre stays only in square images.
    """
    height, width = scene.image.shape[:2]
    x_of_y, y_of_x = coefficients
    matrix = np.array(
        [[1.0, x_of_y, -x_of_y * width / 2], [y_of_x, 1.0, -y_of_x * height / 2]], np.float64
    )
    return _warp(scene, matrix, mean_pixel=mean_pixel, ignore_label=ignore_label)


def rotate(
    scene: Scene, degrees: float, *, mean_pixel: Sequence[float], ignore_label: int
) -> Scene:
    """Rotates a scene about (W / 2, H / 2), counter-clockwise, within its frame.

    Args:
      scene: sides of H and W pixels.
      degrees: the angle.
      mean_pixel, ignore_label: as for `shear`.
    """
    height, width = scene.image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return _warp(scene, matrix, mean_pixel=mean_pixel, ignore_label=ignore_label)


# Crops ------------------------------------------------------------------------------------------


def crop_position(size: Sequence[int], crop_size: Sequence[int], shares: Sequence[float]):
    """Returns where a crop lies, from the shares of the room there is.

    Args:
      size, crop_size: height and width, of the image and of the crop.
      shares: of left and top, in [0, 1).

    Returns:
      (left, top): of the crop in the image along an axis where the image is longer, of the image
      in the crop where it is not.
    """
    room = [abs(side - crop) for side, crop in zip(size, crop_size)]
    return int(shares[0] * (room[1] + 1)), int(shares[1] * (room[0] + 1))


def crop(
    scene: Scene,
    position: tuple[int, int],
    *,
    crop_size: Sequence[int],
    mean_pixel: Sequence[float],
    ignore_label: int,
) -> dict[str, np.ndarray]:
    """Cuts a window out of a scene, or places the scene in it, on each axis by itself.

    Args:
      scene: the scene.
      position: of `crop_position`.
      crop_size: height and width of the window.
      mean_pixel: fills the image where the scene is smaller; becomes 0 in the network.
      ignore_label: fills the label map there.

    Returns:
      'image' float32 [h, w, 3], 'valid' bool [h, w], and 'label' uint8 [h, w] if there is one.
    """
    left, top = position
    corner = [
        start if side > crop else -start
        for side, crop, start in zip(scene.image.shape, crop_size, (top, left))
    ]
    cut = functools.partial(pixels.window, position=corner, size=crop_size)
    views = {
        "image": cut(scene.image, filling=mean_pixel, dtype=np.float32),
        "valid": cut(scene.valid, filling=0, dtype=np.bool_),
    }
    if scene.label is not None:
        views["label"] = cut(scene.label, filling=ignore_label)
    return views


# All of it --------------------------------------------------------------------------------------


def compose(
    image: np.ndarray,
    label: np.ndarray | None,
    draws: CompositionDraws,
    *,
    crop_size: Sequence[int],
    mean_pixel: Sequence[float],
    ignore_label: int,
    max_pixels: float = math.inf,
) -> dict[str, np.ndarray]:
    """Augments one example.

    Args:
      image: uint8 [H, W, 3], RGB; stays as it is.
      label: uint8 [H, W]; None: no label map is returned.
      draws: the random decisions.
      crop_size: height and width of the crop.
      mean_pixel: the backbone's mean colour; fills what is outside the image.
      ignore_label: fills the label map there.
      max_pixels: as for `scale`.

    Returns:
      'image' float32 [h, w, 3] in 0..255, 'valid' bool [h, w], true where there is an image and
      false where a warp or the crop's padding brought in something else, and 'label' uint8 [h, w]
      with values of `label` and `ignore_label` only.

    Source: Learning Pseudo Labels, specification section 2. That warps count as invalid is ours:
    their label is ignored there, so that with masks both say the same.
    """
    for name, parameter in draws.photometric:
        image = adjust_colors(image, name, parameter)
    scene = Scene(image, np.ones(image.shape[:2], np.uint8), label)
    fillings = {"mean_pixel": mean_pixel, "ignore_label": ignore_label}
    for name, parameter in draws.geometric:
        if name == "scale":
            scene = scale(scene, parameter, max_pixels=max_pixels)
        elif name == "flip":
            scene = flip(scene) if parameter else scene
        elif name == "shear":
            scene = shear(scene, parameter, **fillings)
        elif name == "rotation":
            scene = rotate(scene, parameter, **fillings)
        else:
            raise ValueError(f"unknown geometric operation '{name}'")
    position = crop_position(scene.image.shape, crop_size, draws.crop)
    return crop(scene, position, crop_size=crop_size, **fillings)


def max_side(config: DataConfig, *, light: bool) -> int | None:
    """Returns the longest side in pixels that can be warped; None: any, for nothing is."""
    return MAX_SIDE_PX if config.augmentation_settings.augmentation_ops and not light else None


def make_views(config: DataConfig, context: Context) -> Callable[..., dict[str, tf.Tensor]]:
    """See `augment.make_views`."""
    settings = config.augmentation_settings
    scale_range = scale_range_of(settings)
    ops = 0 if context.light else settings.augmentation_ops

    def made(rng, image, label):
        draws = draw(
            rng, ops=ops, scale_range=scale_range, flip_probability=config.flip_probability
        )
        return compose(
            image,
            label,
            draws,
            crop_size=config.train_crop_size,
            mean_pixel=context.mean_pixel,
            ignore_label=context.ignore_label,
            max_pixels=config.max_image_megapixels * 1e6,
        )

    return numpy_views(made, config.train_crop_size, context)
