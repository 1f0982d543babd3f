"""The programs: a command line in, one call of the library, an exit code out.

The docstring of a program is what its --help says first; the command `tfseg` passes the same with
its own name (`about`). Everything heavy is imported inside the functions, so that `--help` answers
at once.
"""

import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from tfseg import command_line
from tfseg.importing import import_tensorflow
from tfseg.settings import flags, programs
from tfseg.settings.help import Help
from tfseg.settings.export import ExportConfig
from tfseg.settings.prediction import EvalConfig, ImagesConfig, VisConfig


def train_sup(about: str | None = None) -> None:
    """Trains a network on pixel labels (the supervised baseline).

    python train_sup.py --dataset_dir=records --train_logdir=run --train_split=train \\
        --model_variant=xception_65 --atrous_rates=6 --atrous_rates=12 --atrous_rates=18 \\
        --decoder_output_stride=4 --train_batch_size=8
    """
    train(default_method="supervised", about=about or about_of(train_sup))


def train_wss(about: str | None = None) -> None:
    """Trains a segmentation network with few pixel labels, by default with PseudoSeg.

    python train_wss.py --dataset_dir=records --train_split=labelled --train_split_cls=unlabelled \\
      --train_logdir=run --model_variant=xception_65 --decoder_output_stride=4
    """
    train(default_method="pseudoseg", about=about or about_of(train_wss))


def train_zls(about: str | None = None) -> None:
    """Trains a segmentation network in which some classes have a name but no pixel label.

    First on the seen classes, then on pseudo labels of the unseen ones:

    python train_zls.py --method=spnet --dataset_dir=records --train_split=train \\
      --class_split=split.json --class_embeddings=vectors.npz --train_logdir=spnet
    python train_zls.py --method=strict --dataset_dir=records --train_split=train \\
      --class_split=split.json --class_embeddings=vectors.npz --train_logdir=strict \\
      --tf_initial_checkpoint=spnet --initialize_last_layer
    """
    train(default_method="strict", about=about or about_of(train_zls))


def train(*, default_method: str, about: str = "") -> None:
    """Entry point of the training programs.

    Args:
      default_method: value of --method where the flag is absent.
      about: what --help says that the program does.
    """

    def main(argv: list[str]) -> int:
        given = flags.given(*programs.TRAINING)
        settings = programs.training(given, default_method=default_method)
        import_tensorflow(with_cloud=settings.train.strategy == "tpu")
        from tfseg.runs import fit

        return fit.fit(settings)

    flags.define(*programs.TRAINING)
    page = Help(programs.TRAINING, programs.defaults_of(default_method), training=True)
    _run(main, page, about)


def evaluate(about: str | None = None) -> None:
    """Evaluates the checkpoints of a training directory.

    python eval.py --checkpoint_dir=run --dataset_dir=records --eval_logdir=run/eval \\
        --eval_split=val --max_number_of_evaluations=1
    """

    def main(argv: list[str]) -> int:
        given = flags.given(*programs.EVALUATION)
        settings = programs.prediction(EvalConfig, given)
        import_tensorflow()
        from tfseg.runs import judge

        judge.evaluate(settings)
        return 0

    flags.define(*programs.EVALUATION)
    _run(main, Help(programs.EVALUATION), about or about_of(evaluate))


def visualize(about: str | None = None) -> None:
    """Draws the predictions of a checkpoint and makes a gallery of them.

    python vis.py --checkpoint_dir=run --dataset_dir=records --vis_logdir=run/vis \\
        --vis_split=val --also_save_raw_predictions
    """

    def main(argv: list[str]) -> int:
        given = flags.given(*programs.PICTURES)
        settings = programs.prediction(VisConfig, given)
        import_tensorflow()
        from tfseg.runs import judge

        judge.draw(settings)
        return 0

    flags.define(*programs.PICTURES)
    _run(main, Help(programs.PICTURES), about or about_of(visualize))


def predict(about: str | None = None) -> None:
    """Predicts plain images: a file, a folder, a pattern or a list; no records are needed.

    python predict.py --checkpoint_dir=run --images=photos --output_dir=masks
    """

    def main(argv: list[str]) -> int:
        config = programs.alone(ImagesConfig, flags.given(*programs.IMAGES))
        import_tensorflow()
        from tfseg.runs import images

        return images.EXIT_CODE_OF_DAMAGED if images.predict(config)["failed"] else 0

    flags.define(*programs.IMAGES)
    _run(main, Help(programs.IMAGES), about or about_of(predict))


def export(about: str | None = None) -> None:
    """Writes a trained network in the format of another program, compared with its checkpoint.

    python export.py --checkpoint_dir=run --format=tflite --size=257,257 --output=exported
    """

    def main(argv: list[str]) -> int:
        config = programs.alone(ExportConfig, flags.given(*programs.EXPORT))
        from tfseg.exporting import write

        write.export(config)
        return 0

    flags.define(*programs.EXPORT)
    _run(main, Help(programs.EXPORT), about or about_of(export))


def about_of(program: Callable[..., None]) -> str:
    """Returns what --help says that a program does: its docstring."""
    return inspect.getdoc(program) or ""


def _run(main: Callable[[list[str]], int], page: Help, about: str) -> NoReturn:
    """Runs a program and leaves the process at once, without Python's own shutdown.

    Threads of the input pipeline may be inside Python when the interpreter is torn down, and then
    wait for it for ever: now and then a finished program would hang.
    """
    try:
        command_line.run(main, help_page=page.text, about=about)
    except SystemExit as leaving:
        if "tensorflow" not in sys.modules:
            raise
        code = leaving.code
    except BaseException:
        traceback.print_exc()
        code = 1
    _leave(code or 0)


def _leave(code: int) -> NoReturn:
    """Ends the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
