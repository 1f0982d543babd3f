"""Trains and evaluates a grid of methods, numbers of masks and seeds; makes a table and a picture.

    python experiments/photographs.py --dataset_dir=records --output_dir=photographs

One command runs at a time. Run again, it goes on where it stopped, kill -9 included: cells that
stand in results.jsonl are passed over, a training resumes from its checkpoint. In --output_dir it
writes

* results.jsonl: one line a cell, with commands, flags, revision, images seen, seconds and scores,
* results.md and learning_curve.svg, made from it after every cell,
* cells/<method>-<masks>-seed<seed>: trainings, evaluations and the logs of all commands.

The records have the splits labeled_<n>_seed<s>, unlabeled_<n>_seed<s> (the other images), train
(all masks), unlabeled (the images of train_aug that are not in train), train_aug and val; the first
three need only be there as far as the grid uses them. The settings of a method are
<settings_dir>/<method>.flags. Settings are chosen on a split of training images, by trials, whose
results stand apart:

    python experiments/photographs.py --dataset_dir=records --output_dir=photographs \
      --methods=unimatch --budgets=24 --seeds=0 --eval_split=tune_seed0 \
      --trial=sure --extra="--confidence_threshold=0.9"
"""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from absl import flags

from cell_state import CellState, Results
from grid_cells import ALL, METHODS, Cell, Plan, Step, cells_of, records_spec
from grid_report import write_report
from tfseg import command_line, sharing
from tfseg.data.split_index import load_index
from tfseg.errors import USER_ERROR_EXIT_CODE, UserError, check_choice

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = flags.FLAGS
# Seconds between looks at the clock while a command runs.
_TICK = 10
# Lines of a log that are shown where its command failed.
_TAIL = 15

# Runs a command in the project's folder, output into a log; calls its last argument with the
# seconds that went by since it did so last; returns the exit code.
Runner = Callable[[Step, pathlib.Path, Callable[[float], None]], int]


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("dataset_dir", None, "Folder of records.")
    flags.DEFINE_string("output_dir", None, "Folder of trainings and results.")
    flags.DEFINE_list("methods", list(METHODS), "Rows of the table: " + ", ".join(METHODS) + ".")
    flags.DEFINE_list(
        "budgets", ["24", "96"], f"Numbers of masks, in the order of running; '{ALL}': all of them."
    )
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds: of the lists of masks and the trainings.")
    flags.DEFINE_string("eval_split", "val", "Split to evaluate on; each has results of its own.")
    flags.DEFINE_string(
        "settings_dir", "experiments/photographs", "Folder of the methods' flagfiles."
    )
    flags.DEFINE_string("crop", "257,257", "Height,width to which images are padded to evaluate.")
    flags.DEFINE_string("extra", "", "Further flags of every training; needs --trial.")
    flags.DEFINE_string("trial", "", "Name of cells with --extra, which stand apart.")
    flags.DEFINE_string(
        "eval_flags", "", "Further flags of eval.py, and of vis.py where it draws pseudo labels."
    )
    flags.DEFINE_bool("dry_run", False, "Print the commands and what is done; run nothing.")


class Stopped(Exception):
    """A signal came; carries its number."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.exit_code = 128 + signum


class Processes:
    """Runs commands one after the other, and hands a signal to the one that runs.

    A training saves then; the next run of the grid goes on there.
    """

    def __init__(self):
        self._child: subprocess.Popen | None = None
        self._received: int | None = None
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._forward)

    def _forward(self, signum: int, frame: object) -> None:
        self._received = signum
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def run(self, step: Step, log: pathlib.Path, clock: Callable[[float], None]) -> int:
        """A `Runner`.

        Raises:
          Stopped: a signal came, before the command or while it ran.
        """
        self._check()
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"$ {step.command}\n")
            file.flush()
            self._child = subprocess.Popen(
                [sys.executable, *step.words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            )
            if self._received is not None:
                self._forward(self._received, None)
            code, told = None, time.monotonic()
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = self._child.wait(_TICK)
                now = time.monotonic()
                clock(now - told)
                told = now
        self._check()
        return code

    def _check(self) -> None:
        if self._received is not None:
            raise Stopped(self._received)


def plan_of() -> Plan:
    """Returns what the flags say of all cells.

    Raises:
      UserError: a flag is missing or wrong.
    """
    for name in ("dataset_dir", "output_dir"):
        if not FLAGS[name].value:
            raise UserError(f"--{name} is required.", where=f"--{name}", accepted=FLAGS[name].help)
    if bool(FLAGS.extra) != bool(FLAGS.trial):
        raise UserError(
            "Trainings with further flags are a trial, which has a name.",
            where="--extra, --trial",
            received=f"--extra={FLAGS.extra!r} --trial={FLAGS.trial!r}",
            accepted="both, or neither",
        )
    if not all(c.isalnum() or c in "._" for c in FLAGS.trial):
        raise UserError(
            "The name of a trial is part of folder names.",
            where="--trial",
            received=FLAGS.trial,
            accepted="letters, digits, '.' and '_'",
        )
    return Plan(
        dataset_dir=_from_root(FLAGS.dataset_dir),
        output_dir=_from_root(FLAGS.output_dir),
        settings_dir=_settings_dir(),
        eval_split=FLAGS.eval_split,
        crop=FLAGS.crop,
        eval_flags=_words("eval_flags"),
        extra=_words("extra"),
        trial=FLAGS.trial,
    )


def _from_root(given: str) -> pathlib.Path:
    """Returns a folder as seen from the project's if it lies there, else its absolute path.

    Commands run in the project's folder. Results then hold no path of one machine, and the grid
    goes on in another clone.
    """
    path = pathlib.Path(os.path.abspath(given))
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _settings_dir() -> pathlib.Path:
    """Returns the folder of flagfiles.

    Raises:
      UserError: there is none.
    """
    given = FLAGS["settings_dir"]
    path = _from_root(given.value if given.present else str(ROOT / given.value))
    if not (ROOT / path).is_dir():
        raise UserError("There is no such folder.", where="--settings_dir", received=path)
    return path


def _words(flag: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(FLAGS[flag].value))
    except ValueError as error:
        raise UserError(
            "A list of flags cannot be read.", where=f"--{flag}", received=str(error)
        ) from None


def grid_of(plan: Plan) -> list[Cell]:
    """Returns the cells that the flags ask for, in the order of running.

    Raises:
      UserError: an unknown method, or a number that is none.
    """
    for name in FLAGS.methods:
        check_choice(name, METHODS, flag="methods", what="method")
    for name, values, also in (("budgets", FLAGS.budgets, ALL), ("seeds", FLAGS.seeds, None)):
        for value in values:
            if value != also and not value.isdecimal():
                raise UserError(
                    f"--{name} has a value that is no number.",
                    where=f"--{name}",
                    received=value,
                    accepted="whole numbers with ',' between them"
                    + (also and f", or {also}" or ""),
                )
    cells = list(cells_of(plan, FLAGS.methods, FLAGS.budgets, [int(seed) for seed in FLAGS.seeds]))
    if not cells:
        raise UserError("The grid has no cell.", where="--methods, --budgets, --seeds")
    return cells


def check_splits(plan: Plan, cells: Iterable[Cell]) -> None:
    """Insists on the splits of all cells, and that none learns from masks it is measured on.

    Raises:
      UserError: a split is not there, or has images of the evaluated one in its masks.
    """
    spec = records_spec(str(plan.dataset_dir))

    def ids_of(split: str) -> set[str]:
        if split not in ids:
            ids[split] = set(load_index(str(plan.dataset_dir), split, spec).ids.tolist())
        return ids[split]

    ids: dict[str, set[str]] = {}
    measured = ids_of(plan.eval_split)
    for cell in cells:
        for split in cell.splits:
            ids_of(split)
        shared = cell.labelled_split and measured & ids_of(cell.labelled_split)
        if shared:
            raise UserError(
                f"{cell.name} learns from masks that it would be measured on.",
                where=f"--eval_split={plan.eval_split}",
                received=f"{len(shared)} images of split '{cell.labelled_split}', such as "
                + min(shared),
                fix="leave out this method or number of masks, or evaluate on another split",
            )


def show(cells: list[Cell], results: Results) -> None:
    """Prints the commands of all cells, and what is done of them."""
    for number, cell in enumerate(cells, start=1):
        state = CellState(cell)
        state.check(results)
        print(f"# {number}/{len(cells)} {cell.name}: {state.describe(results)}")
        for step in cell.steps():
            print(("# done: " if state.is_done(step) else "") + step.command)


def run(cells: list[Cell], results: Results, runner: Runner) -> list[str]:
    """Runs what is not finished.

    Args:
      cells: in their order.
      results: takes what comes out.
      runner: runs a command.

    Returns:
      The names of cells of which a command failed; the others went on.

    Raises:
      UserError: a cell was begun with other settings, or a command has a mistake.
      Stopped: a signal came.
    """
    # Before the first one runs, for days perhaps.
    for cell in cells:
        CellState(cell).check(results)
    failed = []
    for number, cell in enumerate(cells, start=1):
        state = CellState(cell)
        head = f"{number}/{len(cells)} {cell.name}"
        if state.is_finished(results):
            print(f"== {head}: done before ==", flush=True)
            continue
        print(f"== {head} ==", flush=True)
        if not _run_cell(state, runner):
            failed.append(cell.name)
            continue
        entry = state.entry()
        results.add(entry)
        write_report(results)
        minutes = sum(entry["seconds"].values()) / 60
        print(f"== {head}: mIoU {entry['miou']:.3f}, {minutes:.1f} minutes ==", flush=True)
    return failed


def _run_cell(state: CellState, runner: Runner) -> bool:
    """Runs the steps of a cell that are not done; returns whether all are."""
    state.begin()
    for step in state.cell.steps():
        if state.is_done(step):
            continue
        log = state.cell.folder / f"{step.name}.log"
        print(f"$ {step.command}\n  (output in {log})", flush=True)
        code = runner(step, log, lambda seconds, step=step: state.add_seconds(step, seconds))
        if code:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
            if code == USER_ERROR_EXIT_CODE:
                raise UserError(
                    "A command has a mistake, which the next ones may have too.",
                    where=step.command,
                    received=tail,
                    fix="mend it and run the same grid again",
                )
            print(f"{tail}\nfailed with exit code {code}: {step.command}", flush=True)
            return False
        state.finish(step)
    return True


def main(argv: list[str]) -> int:
    """Runs the grid; returns the exit code."""
    plan = plan_of()
    cells = grid_of(plan)
    # Flagfiles name each other from here.
    os.chdir(ROOT)
    check_splits(plan, cells)
    results = Results(plan)
    if FLAGS.dry_run:
        show(cells, results)
        return 0
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with sharing.locked(str(plan.output_dir / ".grid.lock"), wait=False):
            failed = run(cells, results, Processes().run)
            write_report(results)
    except sharing.Busy:
        raise UserError(
            "Another grid is at work in this folder.",
            where=f"--output_dir={plan.output_dir}",
            fix="wait until it ends, or choose another --output_dir",
        ) from None
    except Stopped as stopped:
        return stopped.exit_code
    print(f"written: {results.report_path}", flush=True)
    if failed:
        print("failed: " + ", ".join(failed), file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
