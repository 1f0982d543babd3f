"""The programs: a command line in, one call of the library, an exit code out.

Everything heavy is imported inside the functions, so that `--help` answers at once.
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from tfseg import errors

try:
    from tfseg import command_line
except ModuleNotFoundError as error:
    # Without the environment, absl is the first package that a program lacks.
    missing = errors.from_missing_module(error)
    if missing is None:
        raise
    sys.exit(errors.report(missing))
from tfseg.settings import flags, programs
from tfseg.settings.help import Help
from tfseg.settings.export import ExportConfig
from tfseg.settings.prediction import EvalConfig, ImagesConfig, VisConfig


def train(*, default_method: str) -> None:
    """Entry point of the training programs.

    Args:
      default_method: value of --method where the flag is absent.
    """

    def main(argv: list[str]) -> int:
        given = flags.given(*programs.TRAINING)
        settings = programs.training(given, default_method=default_method)
        from tfseg.runs import fit

        return fit.fit(settings)

    flags.define(*programs.TRAINING)
    page = Help(programs.TRAINING, programs.defaults_of(default_method), training=True)
    _run(main, page)


def evaluate() -> None:
    """Entry point of eval.py."""

    def main(argv: list[str]) -> int:
        given = flags.given(*programs.EVALUATION)
        settings = programs.prediction(EvalConfig, given)
        from tfseg.runs import judge

        judge.evaluate(settings)
        return 0

    flags.define(*programs.EVALUATION)
    _run(main, Help(programs.EVALUATION))


def visualize() -> None:
    """Entry point of vis.py."""

    def main(argv: list[str]) -> int:
        given = flags.given(*programs.PICTURES)
        settings = programs.prediction(VisConfig, given)
        from tfseg.runs import judge

        judge.draw(settings)
        return 0

    flags.define(*programs.PICTURES)
    _run(main, Help(programs.PICTURES))


def predict() -> None:
    """Entry point of predict.py."""

    def main(argv: list[str]) -> int:
        config = programs.alone(ImagesConfig, flags.given(*programs.IMAGES))
        from tfseg.runs import images

        return images.EXIT_CODE_OF_DAMAGED if images.predict(config)["failed"] else 0

    flags.define(*programs.IMAGES)
    _run(main, Help(programs.IMAGES))


def export() -> None:
    """Entry point of export.py."""

    def main(argv: list[str]) -> int:
        config = programs.alone(ExportConfig, flags.given(*programs.EXPORT))
        from tfseg.exporting import write

        write.export(config)
        return 0

    flags.define(*programs.EXPORT)
    _run(main, Help(programs.EXPORT))


def _run(main: Callable[[list[str]], int], page: Help) -> NoReturn:
    """Runs a program and leaves the process at once, without Python's own shutdown.

    Threads of the input pipeline may be inside Python when the interpreter is torn down, and then
    wait for it for ever: now and then a finished program would hang.
    """
    try:
        command_line.run(main, help_page=page.text)
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
