"""What is done of a grid, on disk: the state of each cell, and the results of all.

Both are replaced whole after every change, so that a kill at any moment costs a few seconds of the
clock and nothing else.
"""

import datetime
import json
import pathlib
import subprocess
from typing import Any

from grid_cells import NOTHING, Cell, Plan, Step, records_spec
from tfseg import files
from tfseg.data.atomic_writing import write_atomically
from tfseg.data.split_index import load_index
from tfseg.errors import UserError

_STATE = "cell.json"
_STATE_FORM = {"flags": {str: [str]}, "seconds": {str: object}, "done": [str]}
_RUN_FORM = {
    "git_revision": (str, None),
    "train": {"train_batch_size": int, "training_number_of_steps": int},
    "method": {"labelled_batch_size?": (int, None)},
}
# What the report reads of a result.
_ENTRY_FORM = {
    "cell": str,
    "method": str,
    "budget": str,
    "masks": int,
    "seed": int,
    "trial": str,
    "extra": [str],
    "flags": {str: [str]},
    "seconds": {str: object},
    "miou": object,
    "class_iou": {str: object},
}


class Results:
    """The results on one split, a line of JSON a cell.

    Args:
      plan: what all cells share.

    Raises:
      UserError: the file is there and cannot be read.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        # What settings are chosen by stands apart from what is reported.
        self._prefix = "" if plan.eval_split == "val" else f"{plan.eval_split}_"
        self.path = self._of("results.jsonl")
        self.report_path = self._of("results.md")
        self.chart_path = self._of("learning_curve.svg")
        self.entries: list[dict[str, Any]] = []
        if self.path.exists():
            for number, line in enumerate(self.path.read_text().splitlines(), start=1):
                self.entries.append(self._read(line, number))

    def _of(self, name: str) -> pathlib.Path:
        return self.plan.output_dir / (self._prefix + name)

    def _read(self, line: str, number: int) -> dict[str, Any]:
        where = f"{self.path}, line {number}"
        fix = "mend or delete the line; its cell is then taken from its folder, or run again"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(
                "A result cannot be read.", where=where, received=str(error), fix=fix
            ) from None
        files.check_form(entry, _ENTRY_FORM, what="A result", where=where, fix=fix)
        return entry

    def of(self, cell: Cell) -> dict[str, Any] | None:
        """Returns the result of a cell, None where there is none."""
        return next((entry for entry in self.entries if entry["cell"] == cell.name), None)

    def add(self, entry: dict[str, Any]) -> None:
        """Adds a result, in place of an older one of the same cell."""
        self.entries = [old for old in self.entries if old["cell"] != entry["cell"]] + [entry]
        lines = [json.dumps(entry, allow_nan=False) + "\n" for entry in self.entries]
        write_atomically(str(self.path), "".join(lines).encode())


class CellState:
    """What is done of a cell: `cell.json` in its folder.

    Raises:
      UserError: the file cannot be read.
    """

    def __init__(self, cell: Cell):
        self.cell = cell
        self._path = cell.folder / _STATE
        self._content: dict[str, Any] = {"flags": {}, "seconds": {}, "done": []}
        if self._path.exists():
            self._content = files.read_json(
                str(self._path), _STATE_FORM, what=_STATE, fix=f"delete {cell.folder}"
            )

    def _write(self) -> None:
        self.cell.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(str(self._path), (json.dumps(self._content, indent=1) + "\n").encode())

    def check(self, results: Results) -> None:
        """Insists that what was done of the cell was done with the flags of now.

        Raises:
          UserError: names the flags that differ.
        """
        entry = results.of(self.cell)
        for step in self.cell.steps():
            now = self.cell.flags_of(step)
            known = [self._content["flags"].get(step.name)] if self._was_begun(step) else []
            if entry is not None:
                known.append(entry["flags"].get(step.name))
            for before in known:
                if before is not None and before != now:
                    raise UserError(
                        f"{self.cell.name} was begun with other flags.",
                        where=f"{self.cell.folder}, step {step.name}",
                        received=" ".join(word for word in now if word not in before)
                        or "fewer flags, or another order",
                        accepted=" ".join(word for word in before if word not in now) or None,
                        fix="give it a name of its own with --trial and --extra, choose another "
                        "--output_dir, or begin it anew: delete its folder and its line of "
                        "results.jsonl",
                    )

    def _was_begun(self, step: Step) -> bool:
        """Returns whether there is anything of a step that other flags would mix with.

        Not where a flag was refused before the first checkpoint.
        """
        checkpoints = (self.cell.folder / step.name).glob("model.ckpt-*.index")
        return self.is_done(step) or any(checkpoints)

    def begin(self) -> None:
        """Writes down with which flags the cell runs."""
        for step in self.cell.steps():
            self._content["flags"][step.name] = self.cell.flags_of(step)
        self._write()

    def is_done(self, step: Step) -> bool:
        return step.name in self._content["done"]

    def is_finished(self, results: Results) -> bool:
        """Returns whether its result is written; its folder need not be there any more."""
        return results.of(self.cell) is not None

    def describe(self, results: Results) -> str:
        if self.is_finished(results):
            return f"finished, mIoU {results.of(self.cell)['miou']:.3f}"
        return "unfinished" if self._content["flags"] else "to do"

    def add_seconds(self, step: Step, seconds: float) -> None:
        """Moves the step's clock on."""
        clock = self._content["seconds"]
        clock[step.name] = round(clock.get(step.name, 0) + seconds, 1)
        self._write()

    def finish(self, step: Step) -> None:
        """Writes down that a step is done."""
        self._content["done"].append(step.name)
        self._write()

    def entry(self) -> dict[str, Any]:
        """Returns the result of the finished cell, a line of results.jsonl."""
        cell, plan = self.cell, self.cell.plan
        steps = cell.steps()
        evaluation = cell.folder / cell.evaluation
        metrics = files.read_json(str(evaluation / "metrics.json"), what="metrics.json")
        trainings = {
            step.name: self._training(cell.folder / step.name, step.name)
            for step in steps
            if step.is_training
        }
        return {
            "cell": cell.name,
            "method": cell.method_name,
            "others": cell.method.others,
            "budget": cell.budget,
            "masks": _num_masks(plan, cell.labelled_split),
            "seed": cell.seed,
            "trial": plan.trial,
            "extra": list(plan.extra),
            "eval_split": plan.eval_split,
            "miou": metrics["miou"],
            "class_iou": metrics["class_iou"],
            "pixel_accuracy": metrics["pixel_accuracy"],
            "num_images": metrics["num_images"],
            "checkpoint": metrics["checkpoint"],
            "trainings": trainings,
            "seconds": {step.name: self._content["seconds"].get(step.name, 0.0) for step in steps},
            "commands": [step.command for step in steps],
            "flags": {step.name: self._content["flags"][step.name] for step in steps},
            "eval_revision": _revision(),
            "finished": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "logs": [f"cells/{cell.name}/{step.name}.log" for step in steps],
        }

    def _training(self, folder: pathlib.Path, name: str) -> dict[str, Any]:
        """Returns the revision of a training, its steps and the images that it saw."""
        record = files.read_json(str(folder / "config.json"), _RUN_FORM, what="config.json")
        steps, batch = (
            record["train"][key] for key in ("training_number_of_steps", "train_batch_size")
        )
        with_masks = without = 0
        if name == "retrain":
            # Of one stream, some with masks and most with pseudo labels.
            without = steps * batch
        else:
            if self.cell.labelled_split is not None:
                with_masks = steps * (record["method"].get("labelled_batch_size") or batch)
            if self.cell.method.others != NOTHING:
                without = steps * batch
        return {
            "revision": record["git_revision"],
            "steps": steps,
            "images_with_masks": with_masks,
            "other_images": without,
        }


def _num_masks(plan: Plan, split: str | None) -> int:
    """Returns how many masks a split has."""
    if split is None:
        return 0
    dataset_dir = str(plan.dataset_dir)
    return int(load_index(dataset_dir, split, records_spec(dataset_dir)).has_mask.sum())


def _revision() -> str | None:
    """Returns the source tree's revision, None outside git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
