"""What the programs do, as Python functions.

They are fit, evaluate, draw, predict_images, load, predict and export.

Settings are keyword arguments with the names of the flags, tuples in place of lists. What is wrong
with them, with data or with checkpoints is a `tfseg.UserError`.

Example, from records to the mask of a photograph:

    import tfseg

    run = tfseg.fit(
        method="pseudoseg",
        dataset_dir="records",
        train_split="labelled",
        train_split_cls="unlabelled",
        train_logdir="run",
        model_variant="mobilenet_v2",
        train_crop_size=(257, 257),
        training_number_of_steps=1000,
    )
    print(tfseg.evaluate("run", dataset_dir="records")["miou"])
    mask = run.predict("photo.jpg")
"""

import os
from typing import Any

import numpy as np

from tfseg.exporting import write as _write
from tfseg.runs import fit as _fit
from tfseg.runs import images as _images
from tfseg.runs import judge
from tfseg.runs.run import Run, load_run
from tfseg.settings import programs
from tfseg.settings.export import ExportConfig
from tfseg.settings.prediction import EvalConfig, ImagesConfig, VisConfig
from tfseg.settings.reading import given_as

_INTERRUPTED = 130


def fit(method: str = "supervised", **settings: Any) -> Run:
    """Trains a run, or goes on with it where `train_logdir` holds its checkpoints.

    Args:
      method: name of the method; its defaults are those of its program.
      **settings: of `train_sup.py`, `train_wss.py` and `train_zls.py`, by the names of their flags;
        `dataset_dir` and `train_logdir` are needed.

    Returns:
      The run, with the weights of its last checkpoint.

    Raises:
      UserError: settings, data or weights cannot be used.
      TypeError: no setting has this name.
      KeyboardInterrupt: Ctrl-C; a checkpoint was written, and the same call resumes.
      SystemExit: another signal, likewise.
    """
    given = given_as(programs.TRAINING, {"method": method, **settings})
    code = _fit.fit(programs.training(given, default_method=method))
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)
    return load_run(given["train_logdir"])


def evaluate(checkpoint_dir: str | os.PathLike, **settings: Any) -> dict[str, Any]:
    """Measures the newest checkpoint of a run, or one by its prefix.

    Args:
      checkpoint_dir: training directory, or checkpoint prefix.
      **settings: of `eval.py`, by the names of its flags. `eval_logdir` is
        <training directory>/eval
        where it is not given; `max_number_of_evaluations` is then 1.

    Returns:
      The content of metrics.json.

    Raises:
      UserError, TypeError: see `fit`.
    """
    path = os.fspath(checkpoint_dir)
    own = {"checkpoint_dir": path, "eval_logdir": _beside(path, "eval")}
    given = given_as(programs.EVALUATION, {**own, "max_number_of_evaluations": 1, **settings})
    return judge.evaluate(programs.prediction(EvalConfig, given))


def draw(checkpoint_dir: str | os.PathLike, **settings: Any) -> dict[str, Any] | None:
    """Draws the predictions of a checkpoint, with a page that shows them.

    Args:
      checkpoint_dir: training directory, or checkpoint prefix.
      **settings: of `vis.py`, by the names of its flags. `vis_logdir` is <training directory>/vis
        where it is not given.

    Returns:
      'miou', 'class_iou' and 'pixel_accuracy' of the images with masks; None where none has one.

    Raises:
      UserError, TypeError: see `fit`.
    """
    path = os.fspath(checkpoint_dir)
    own = {"checkpoint_dir": path, "vis_logdir": _beside(path, "vis")}
    given = given_as(programs.PICTURES, {**own, **settings})
    return judge.draw(programs.prediction(VisConfig, given))


def predict_images(
    checkpoint_dir: str | os.PathLike,
    images: str | os.PathLike,
    output_dir: str | os.PathLike,
    **settings: Any,
) -> dict[str, Any]:
    """Predicts image files and writes masks and pictures of them.

    Args:
      checkpoint_dir: training directory, or checkpoint prefix.
      images: an image file, a folder, a pattern, or a text file of paths.
      output_dir: folder for what is written.
      **settings: of `predict.py`, by the names of its flags.

    Returns:
      'images', 'predicted' and 'skipped': how many there are, were predicted now and before;
      'failed': what is wrong with damaged ones, by name.

    Raises:
      UserError, TypeError: see `fit`.
    """
    own = {"checkpoint_dir": checkpoint_dir, "images": images, "output_dir": output_dir}
    given = given_as(programs.IMAGES, {**own, **settings})
    return _images.predict(programs.alone(ImagesConfig, given))


def load(checkpoint_dir: str | os.PathLike, network: str | None = None) -> Run:
    """Loads a trained run, to predict with it.

    Args:
      checkpoint_dir: training directory, or checkpoint prefix.
      network: which network of the checkpoint, such as 'ema'; None: the deployable one.

    Raises:
      UserError: there is no checkpoint, or it cannot be read.
    """
    return load_run(os.fspath(checkpoint_dir), network)


def predict(checkpoint_dir: str | os.PathLike, image: str | os.PathLike | np.ndarray) -> np.ndarray:
    """Returns the mask of one image; for several, `load` a run once and use its `predict`.

    Args:
      checkpoint_dir: training directory, or checkpoint prefix.
      image: see `Run.predict`.

    Raises:
      UserError: the checkpoint or the image cannot be read.
    """
    return load(checkpoint_dir).predict(image)


def export(
    checkpoint_dir: str | os.PathLike, output: str | os.PathLike, **settings: Any
) -> dict[str, Any]:
    """Writes a trained network as a SavedModel, a TFLite file or an ONNX file.

    Args:
      checkpoint_dir: training directory, or checkpoint prefix.
      output: new folder for the file, its model card and its metadata.
      **settings: of `export.py`, by the names of its flags.

    Returns:
      The content of metadata.json: 'file' in the folder, the classes, and under 'comparison' how
      far it agrees with the checkpoint.

    Raises:
      UserError, TypeError: see `fit`; also where the file does not agree with the checkpoint.
        Nothing is written then.
    """
    own = {"checkpoint_dir": checkpoint_dir, "output": output}
    given = given_as(programs.EXPORT, {**own, **settings})
    return _write.export(programs.alone(ExportConfig, given))


def _beside(path: str, name: str) -> str:
    """Returns a folder in the training directory of a directory or prefix."""
    return os.path.join(path if os.path.isdir(path) else os.path.dirname(path), name)
