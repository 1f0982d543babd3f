"""Word vectors of the classes."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClassVectors:
    """One vector for every class of a data set.

    Args:
      values: float32 [C, D]; rows of classes that take no part may be zero.
      source: the files and arrays they come from, as given.
      sha256: of `values`.
      norm: how they were normalised: none, unit or max_norm.
    """

    values: np.ndarray
    source: str
    sha256: str
    norm: str
