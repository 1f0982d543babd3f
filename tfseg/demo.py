"""The demo: ordinary commands, from nothing to a gallery."""

import dataclasses
import json
import multiprocessing
import pathlib
import runpy
import shlex
import sys
import time
from typing import ClassVar

from tfseg import command_line
from tfseg.settings import flags
from tfseg.settings.help import Help
from tfseg.settings.option import Section, option

# Side of the scenes, pixels.
_SIDE = 97
# Row of the table, flagfile, command.
_RUNS = (
    ("supervised, 24 masks", "digits", "train-sup"),
    ("PseudoSeg, 24 masks + unlabelled", "digits_pseudoseg", "train-wss"),
    ("PseudoSeg, 24 masks + image labels", "digits_pseudoseg_weakly", "train-wss"),
)
# Each program is a process of its own, copied from one that has imported TensorFlow: to import it
# takes as long as an evaluation.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tfseg.runs.fit", "tfseg.runs.judge"])


@dataclasses.dataclass(frozen=True)
class Settings(Section):
    """The program's flags."""

    GROUP: ClassVar[str] = "demo"

    output_dir: str = option("demo_output", "Folder for the records, the runs and the pictures.")
    steps: int | None = option(
        None, "Training steps, for a quick look; None: those of the flagfiles.", limits=(1, None)
    )


def run(*arguments: str) -> None:
    """Runs one of the programs and shows the command first.

    Raises:
      SystemExit: with the program's exit code, where that is not 0.
    """
    print("\n$ tfseg " + " ".join(shlex.quote(a) for a in arguments), flush=True)
    process = _PROCESSES.Process(target=_program, args=(arguments,))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def _program(arguments: tuple[str, ...]) -> None:
    """Is the command `tfseg` in a process of its own."""
    sys.argv = ["tfseg", *arguments]
    runpy.run_module("tfseg", run_name="__main__")


def train_and_evaluate(name: str, command: str, output: pathlib.Path, *extra: str) -> dict:
    """Trains, evaluates and draws one row of the table; returns its metrics."""
    records, logdir = str(output / "records"), output / name
    run(
        command,
        f"--flagfile={name}",
        f"--dataset_dir={records}",
        f"--train_logdir={logdir}",
        *extra,
    )
    shared = (f"--checkpoint_dir={logdir}", f"--dataset_dir={records}")
    run(
        "eval",
        *shared,
        f"--eval_logdir={logdir / 'eval'}",
        f"--eval_crop_size={_SIDE},{_SIDE}",
        "--eval_batch_size=8",
        "--max_number_of_evaluations=1",
    )
    run(
        "vis",
        *shared,
        f"--vis_logdir={logdir / 'vis'}",
        f"--vis_crop_size={_SIDE},{_SIDE}",
        "--also_save_raw_predictions",
    )
    return json.loads((logdir / "eval" / "metrics.json").read_text())


def main(argv: list[str]) -> None:
    """Makes the records, trains every row, and prints the table."""
    settings = flags.read(Settings)
    output = pathlib.Path(settings.output_dir).resolve()
    started = time.monotonic()
    run(
        "convert",
        "digits",
        f"--output_dir={output / 'records'}",
        f"--image_size={_SIDE}",
        "--num_digits=4",
        "--num_train=24",
    )
    extra = [] if settings.steps is None else [f"--training_number_of_steps={settings.steps}"]
    rows = {
        title: (name, train_and_evaluate(name, command, output, *extra))
        for title, name, command in _RUNS
    }
    minutes = (time.monotonic() - started) / 60

    print(f"\n{'training':<38} {'mIoU':>6} {'pixel accuracy':>15}   pictures")
    for title, (name, metrics) in rows.items():
        gallery = output / name / "vis" / "index.html"
        print(f"{title:<38} {metrics['miou']:6.3f} {metrics['pixel_accuracy']:15.3f}   {gallery}")
    print(f"\n{metrics['num_images']} validation scenes, {minutes:.1f} minutes. Open the pictures")
    print("in a browser; they are sorted worst first.", flush=True)


def program(about: str) -> None:
    """Trains and evaluates three networks on scenes of handwritten digits.

    tfseg demo --output_dir=demo_output

    It makes the records. It trains the supervised baseline on a few labelled scenes, and PseudoSeg
    on these and many more, first unlabelled, then with image-level labels. It evaluates each
    network and draws its predictions. These are ordinary commands, printed before they run. Then it
    prints a table. A second run reuses what is there.
    """
    flags.define(Settings)
    command_line.run(main, help_page=Help((Settings,)).text, about=about)
