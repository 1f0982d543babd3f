"""TFLite, for images of one size: the format of LiteRT on phones and small computers.

Names and colours of the classes stand in a zip archive behind the network (`metadata.json` and
`labels.txt`), which is where TFLite's own tools look for files that belong to one.
"""

import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.errors import UserError, naming_file
from tfseg.exporting import selective
from tfseg.exporting.comparison import Limits, Segment
from tfseg.exporting.precision import require_float32
from tfseg.exporting.quiet import quietly
from tfseg.exporting.savedmodel import save
from tfseg.exporting.serving import IMAGE, LABELS, PROBABILITIES
from tfseg.exporting.task import Task
from tfseg.settings.export import TFLiteSettings

FILE, TAKES_ONE_SIZE = "model.tflite", True
_MIOU_LOSS = {"float16": 0.01, "dynamic": 0.01, "int8": 0.02}


def check(settings: TFLiteSettings, network: Any = None) -> None:
    """Insists on a size, and on a network that computes in float32.

    Raises:
      UserError: the size is none, or the network computes otherwise.
    """
    size = settings.size
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise UserError(
            "--size needs two positive sides.",
            where="--size",
            received=",".join(map(str, size)),
            accepted="height,width, for example 257,353",
        )
    if network is not None:
        require_float32(network, "tflite")


def limits(settings: TFLiteSettings) -> Limits:
    """Returns what the file must keep to."""
    if settings.tflite_quantization == "none":
        return Limits(equal_pixels=0.999)
    return Limits(miou_loss=_MIOU_LOSS[settings.tflite_quantization])


def write(task: Task, path: str) -> dict[str, Any]:
    """Writes the file `path`; returns the names of layers in float32 of a file of 8 bits."""
    with tempfile.TemporaryDirectory(prefix="tfseg-") as folder, quietly():
        save(task.serving, folder, task.size, 1)
        content, told = _converted(task, folder)
    with naming_file(path), open(path, "wb") as file:
        file.write(content)
    with naming_file(path), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("metadata.json", json.dumps({**task.metadata, **told}, indent=1))
        archive.writestr("labels.txt", "\n".join(task.metadata["class_names"]) + "\n")
    return told


def _converted(task: Task, folder: str) -> tuple[bytes, dict[str, Any]]:
    """Returns the network of a SavedModel with the numbers that the settings ask for."""
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    quantization = task.settings.tflite_quantization
    if quantization != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization != "int8":
        return converter.convert(), {}
    pictures = task.calibration

    def images() -> Iterator[list[np.ndarray]]:
        for picture in pictures:
            yield [picture.image[np.newaxis]]

    converter.representative_dataset = images
    agreement = selective.Agreement(task.checkpoint, pictures)
    content, kept = selective.quantized(
        converter,
        images,
        agreement=lambda content: agreement(of_content(content)),
        wanted=task.settings.int8_agreement,
    )
    return content, {"float_layers": kept}


def of_content(content: bytes) -> Segment:
    """Returns how a network in TFLite's format segments an image, on all cores."""
    with quietly():
        interpreter = tf.lite.Interpreter(model_content=content, num_threads=os.cpu_count())
    run = interpreter.get_signature_runner("serving_default")

    def segment(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = run(**{IMAGE: image[np.newaxis]})
        return found[LABELS][0], found[PROBABILITIES][0]

    return segment


def load(path: str) -> Segment:
    """Returns how the written file segments an image."""
    with open(path, "rb") as file:
        return of_content(file.read())
