"""SavedModel: TensorFlow's own format, for images of any size."""

import json
import os
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.exporting.comparison import Limits, Segment
from tfseg.exporting.quiet import quietly
from tfseg.exporting.serving import LABELS, PROBABILITIES, Serving
from tfseg.exporting.task import Task
from tfseg.ops.resize import KERNEL, bilinear_by
from tfseg.settings.export import FormatSettings

FILE, TAKES_ONE_SIZE = "saved_model", False
# The folder that TensorFlow leaves to users inside a SavedModel.
METADATA = os.path.join("assets.extra", "metadata.json")
# TensorFlow takes a path with these for a pattern, which does not fit itself.
_OF_PATTERNS = "[\\"


def check(settings: FormatSettings, network: Any = None) -> None:
    """Refuses nothing: whatever TensorFlow computes it can save."""


def limits(settings: FormatSettings) -> Limits:
    """Returns what the file must keep to."""
    return Limits(equal_pixels=0.999)


def write(task: Task, path: str) -> dict[str, Any]:
    """Writes the folder `path`, with the metadata in it."""
    if unloadable := sorted(set(_OF_PATTERNS) & set(os.path.abspath(path))):
        print(
            f"note: TensorFlow loads no SavedModel from a path with {' or '.join(unloadable)}: "
            "copy the folder elsewhere before use",
            flush=True,
        )
    save(task.serving, path, (None, None), None)
    os.makedirs(os.path.dirname(os.path.join(path, METADATA)))
    with open(os.path.join(path, METADATA), "w", encoding="utf-8") as file:
        json.dump(task.metadata, file, indent=1)
    return {}


def save(
    serving: Serving, path: str, size: tuple[int | None, int | None], batch: int | None
) -> None:
    """Writes a SavedModel for images uint8 [batch, *size, 3].

    The network is closed over and its variables alone are tracked. Its layers cannot be saved as
    they are, because some take arguments that only training gives; and whoever loads the file need
    not have them.
    """
    module = tf.Module()
    module.values = list(serving.network.variables)
    with bilinear_by(KERNEL):
        module.serve = serving.function(size, batch)
        signature = module.serve.get_concrete_function()
    # Gradients would be traced for every convolution, and nothing that serves needs them.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, path, signatures=signature, options=options)


def load(path: str) -> Segment:
    """Returns how the written file segments an image."""
    with quietly(), tempfile.TemporaryDirectory() as folder:
        plain = os.path.join(folder, FILE)
        os.symlink(os.path.abspath(path), plain)
        loaded = tf.saved_model.load(plain)

    def segment(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = loaded.signatures["serving_default"](image=tf.constant(image[np.newaxis]))
        return found[LABELS][0].numpy(), found[PROBABILITIES][0].numpy()

    return segment
