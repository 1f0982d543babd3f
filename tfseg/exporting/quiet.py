"""What TensorFlow says to its own authors, kept from the user."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Holds back warnings of TensorFlow's Python code inside.

    They are that gradients of our convolutions were not saved, which nothing that serves asks for,
    and that another package will take the place of `tf.lite`.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
