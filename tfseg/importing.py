"""Imports TensorFlow sooner: without the packages that it can do without and tfseg does not use."""

import importlib
import sys

# Keras trains on data frames and sparse matrices where it finds these, and TensorFlow asks Google's
# cloud for machines. All three are optional there; together they are a fifth of its import.
_OPTIONAL = ("pandas", "scipy")
_CLOUD = ("googleapiclient",)


def import_tensorflow(*, with_cloud: bool = False) -> None:
    """Imports TensorFlow and Keras, for a program whose process is its own.

    Whatever imports one of the packages left out gets it afterwards as ever.

    Args:
      with_cloud: TensorFlow may ask Google's cloud, as it does for TPUs.
    """
    if "tensorflow" in sys.modules:
        return
    names = _OPTIONAL if with_cloud else (*_OPTIONAL, *_CLOUD)
    left_out = [name for name in names if name not in sys.modules]
    # Python takes such an entry for a package that is not installed.
    sys.modules.update(dict.fromkeys(left_out))
    try:
        tensorflow = importlib.import_module("tensorflow")
        # What is only named there is imported when it is first used.
        tensorflow.keras.layers.Layer  # noqa: B018
    finally:
        for name in left_out:
            del sys.modules[name]
