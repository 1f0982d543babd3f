"""Initial values of kernels and biases, drawn with NumPy."""

import math
from collections.abc import Callable, Sequence

import numpy as np

Initializer = Callable[[np.random.Generator, Sequence[int]], np.ndarray]


def truncated_normal(stddev: float) -> Initializer:
    """Normal values of the given deviation; those beyond two deviations are drawn again."""

    def draw(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        values = rng.standard_normal(math.prod(shape), dtype=np.float32)
        outside = np.flatnonzero(np.abs(values) > 2.0)
        while outside.size:
            values[outside] = again = rng.standard_normal(outside.size, dtype=np.float32)
            outside = outside[np.abs(again) > 2.0]
        values *= np.float32(stddev)
        return values.reshape(shape)

    return draw


def he_truncated_normal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Variance 2 / fan-in; 1.3 makes up for the truncation, as TF1's initialiser does."""
    return truncated_normal(math.sqrt(1.3 * 2.0 / math.prod(shape[:-1])))(rng, shape)


def he_normal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Normal values of variance 2 / fan-in."""
    deviation = math.sqrt(2.0 / math.prod(shape[:-1]))
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)


def he_normal_depthwise(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """The same for depthwise kernels, whose outputs each see one channel."""
    return he_normal(rng, (*shape[:2], 1, shape[2])).reshape(shape)


def xavier_uniform(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Uniform values of variance 2 / (fan-in + fan-out)."""
    area = math.prod(shape[:-2])
    limit = math.sqrt(6.0 / (area * (shape[-2] + shape[-1])))
    return rng.uniform(-limit, limit, shape).astype(np.float32)


def he_normal_fan_out(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Normal values of variance 2 / fan-out."""
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(math.sqrt(2.0 / fan_out))


def uniform_fan_in(fan_in: int) -> Initializer:
    """Uniform values within 1 / sqrt(fan-in): what PyTorch's convolutions start with."""
    limit = 1.0 / math.sqrt(fan_in)
    return lambda rng, shape: rng.uniform(-limit, limit, shape).astype(np.float32)


def constant(value: float) -> Initializer:
    """The same value everywhere."""
    return lambda rng, shape: np.full(shape, value, np.float32)
