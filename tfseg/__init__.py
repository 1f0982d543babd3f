"""tfseg: label-efficient semantic segmentation with TensorFlow 2 and Keras.

A map of the package, in the order in which a command meets it:

* `settings` holds every setting: frozen dataclasses, one field = one flag + its help; registries of
  methods, heads and augmentations; `flags` makes absl flags of them, and `help` the help page.
* `console` is the command `tfseg`, one name in front of every program (`demo` and `doctor` among
  them). `cli` is the programs, `api` the same as Python functions: `tfseg.fit`, `evaluate`, `draw`,
  `predict_images`, `load`, `predict`, `export`. Both call `runs`, which puts a run together from
  settings.
* `data` reads TFRecords (`split_index`, `record_reader`), knows data sets and splits (`specs`),
  which classes have pixel labels (`class_splits`) and words (`class_embeddings`), orders records
  (`sampling`), augments (`augment/`, one file each) and makes batches (`pipeline`, which documents
  the batch vocabulary).
* `models` turns images into logits: `network`, `backbones/`, `heads/`, `layers/`.
* `ops` are pure functions: losses, resizing, activation maps, pseudo labels.
* `methods` turn batches into named scalar losses; a method is one file (parts of ZS3Net stand in
  `zs3net_parts/`). `monitors` are what it measures beside its losses.
* `training` turns losses into updates: the loop, the optimisers, learning-rate schedules.
* `weights` are on disk: checkpoints by variable name (`checkpoint/`), initial weights, PyTorch's
  files; `torch_weights` is the program that converts these.
* `inference` gets from a trained network to predictions, metrics and pictures; `images/` in it is
  prediction on plain images.
* `exporting` writes it as a SavedModel, a TFLite or an ONNX file, compared with the checkpoint.
* `storage` opens, lists and writes records, on a disk or on an object store.
* `sharing` has what processes need that share a folder: temporary names and locks.
* `shipped` finds the flagfiles that come with the package, `machine` knows memory and processor,
  `importing` imports TensorFlow for the programs.
* `files` reads JSON and .npz, and `unpickling` pickles, whatever is in them.
* `errors` has the one exception that a user ever sees.

Importing this package selects Keras 2 (`tf_keras`), because tf-models-official is built on
it and Keras 3 objects cannot be mixed with it. That only works before TensorFlow is
imported, hence the check below.
"""

import os
import platform
import sys
import warnings

__version__ = "0.1.0"


def _select_keras_2() -> None:
    """Makes `tf.keras` mean Keras 2, or says why it cannot."""
    already_imported = sys.modules.get("tensorflow")
    if already_imported is not None and os.environ.get("TF_USE_LEGACY_KERAS") != "1":
        major, minor = (int(x) for x in already_imported.__version__.split(".")[:2])
        if (major, minor) >= (2, 16):
            raise ImportError(
                "TensorFlow was imported before tfseg, so tf.keras is already Keras 3, which "
                "tf-models-official cannot use. Import tfseg first, or set the environment "
                "variable TF_USE_LEGACY_KERAS=1 before the program starts."
            )
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    # TensorFlow's C++ start-up notes (oneDNN, CPU features, a missing GPU): a user can do nothing
    # about them, and some are logged as errors. A value that the user has chosen stays.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # On processors without AVX-512 TensorFlow leaves oneDNN off, and then dilated convolutions have
    # no gradient there. Where it is on by default this changes nothing.
    if platform.machine() == "x86_64":
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # Deprecation notes of third-party modules, addressed to their authors.
    for module in (r"tensorflow.*", r"tf_keras.*", r"keras.*", r"official.*", r"google\..*"):
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=module)
    # The age of the Python version, said by a dependency of a dependency.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\.api_core.*")


_select_keras_2()

from tfseg.errors import UserError  # noqa: E402

__all__ = ["UserError", "draw", "evaluate", "export", "fit", "load", "predict", "predict_images"]


def __getattr__(name: str) -> object:
    """Imports the functions of `tfseg.api`, and with them TensorFlow, when one is asked for."""
    if name in __all__:
        from tfseg import api

        return getattr(api, name)
    raise AttributeError(f"module 'tfseg' has no attribute '{name}'")
