"""The grid of trainings: its order, its commands, what it passes over, what it writes.

A runner in place of the programs writes what these would leave.
"""

import functools
import json
import pathlib
import re
import shutil
import signal
import sys
import types
import xml.etree.ElementTree

import numpy as np
import pytest
from absl import flags

from tests.programs import ROOT, run
from tfseg.errors import UserError

sys.path.insert(0, str(ROOT / "experiments"))
import cell_state
import grid_cells
import grid_report
import photographs

SHARED = {"train_batch_size": 4, "training_number_of_steps": 1000}
# mIoU by method, as the fake runner has it.
SCORES = {"supervised": 0.4, "unimatch": 0.5, "oracle": 0.6, "slrnet_labels_only": 0.3}


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    """Flagfiles name each other from the project's folder; splits have as many masks as named."""
    monkeypatch.chdir(ROOT)

    def load_index(dataset_dir, split, spec):
        number = int(split.split("_")[1]) if split.startswith("labeled") else 437
        ids = {"val": ["v1", "v2"], "tune_seed0": ["t1"], "train": ["m0", "t1"]}
        return types.SimpleNamespace(
            ids=np.array(ids.get(split, [f"{split}_0"])), has_mask=np.ones(number, bool)
        )

    for module in (photographs, cell_state):
        monkeypatch.setattr(module, "load_index", load_index)
        monkeypatch.setattr(module, "records_spec", lambda dataset_dir: None)


def plan(tmp_path, **changes):
    defaults = {
        "dataset_dir": tmp_path / "records",
        "output_dir": tmp_path / "out",
        "settings_dir": pathlib.Path("experiments/photographs"),
        "eval_split": "val",
        "crop": "257,257",
    }
    return grid_cells.Plan(**{**defaults, **changes})


def cells(plan, methods=("supervised", "unimatch", "oracle"), budgets=("24",), seeds=(0, 1)):
    return list(grid_cells.cells_of(plan, methods, budgets, seeds))


class FakeRunner:
    """Leaves what a training or an evaluation would, and remembers the commands."""

    def __init__(self, fails_at=None, code=1):
        self.ran, self._fails_at, self._code = [], fails_at, code

    def __call__(self, step, log, clock):
        value = dict(word.split("=", 1) for word in step.words if "=" in word)
        folder = pathlib.Path(
            value.get("--train_logdir") or value.get("--eval_logdir") or log.parent
        )
        self.ran.append(f"{log.parent.name} {step.name}")
        log.write_text("the log\n")
        clock(30.0)
        if self.ran[-1] == self._fails_at:
            return self._code
        folder.mkdir(parents=True, exist_ok=True)
        if step.is_training:
            record = {"git_revision": "abc", "train": SHARED, "method": {}}
            (folder / "config.json").write_text(json.dumps(record))
        elif step.name.startswith("evaluate"):
            method, _, seed = log.parent.name.split("-")[:3]
            miou = SCORES.get(method, 0.45) + 0.02 * int(seed[-1])
            metrics = {
                "miou": miou,
                "class_iou": {"background": 0.9, "cat": None},
                "pixel_accuracy": 0.8,
                "num_images": 445,
                "checkpoint": "model.ckpt-1000",
            }
            (folder / "metrics.json").write_text(json.dumps(metrics))
        return 0


def run_grid(cells, runner):
    return photographs.run(cells, cell_state.Results(cells[0].plan), runner)


def test_cells_come_by_masks_then_seed_then_method_and_once_each(tmp_path):
    methods = ("supervised", "slrnet_labels_only", "oracle")
    found = cells(plan(tmp_path), methods, budgets=("24", "96", "all"))
    assert [cell.name for cell in found] == [
        "supervised-24-seed0",
        "slrnet_labels_only-0-seed0",
        "oracle-all-seed0",
        "supervised-24-seed1",
        "slrnet_labels_only-0-seed1",
        "oracle-all-seed1",
        "supervised-96-seed0",
        "supervised-96-seed1",
    ]


def test_commands_are_plain_calls_with_splits_and_seed(tmp_path):
    one = plan(tmp_path, extra=("--confidence_threshold=0.9",), trial="sure")
    (cell,) = cells(one, ("unimatch",), seeds=(2,))
    out, records = tmp_path / "out" / "cells" / "unimatch-24-seed2-sure", tmp_path / "records"
    assert [step.command for step in cell.steps()] == [
        "python train_wss.py --flagfile=experiments/photographs/unimatch.flags "
        f"--dataset_dir={records} --train_split=labeled_24_seed2 "
        "--train_split_cls=unlabeled_24_seed2 --seed=2 --confidence_threshold=0.9 "
        f"--train_logdir={out}/train",
        f"python eval.py --checkpoint_dir={out}/train --dataset_dir={records} --eval_split=val "
        f"--eval_logdir={out}/evaluate_val --eval_crop_size=257,257 --eval_batch_size=8 "
        "--max_number_of_evaluations=1",
    ]


def test_pseudo_labels_are_drawn_as_the_network_is_evaluated(tmp_path):
    (cell,) = cells(
        plan(tmp_path, eval_flags=("--eval_scales=2",)), ("learning_pseudo_labels",), seeds=(0,)
    )
    scaled = [step.words[0] for step in cell.steps() if "--eval_scales=2" in step.words]
    assert scaled == ["vis.py", "eval.py"]


def test_every_method_trains_on_the_splits_that_it_may_know(tmp_path):
    found = {
        cell.method_name: cell for cell in cells(plan(tmp_path), grid_cells.METHODS, seeds=(0,))
    }
    few = ("labeled_24_seed0", "unlabeled_24_seed0")
    assert {name: cell.splits for name, cell in found.items()} == {
        "supervised": few[:1],
        "pseudoseg": few,
        "unimatch": few,
        "pseudoseg_weakly": few,
        "learning_pseudo_labels": ("labeled_24_seed0", "train_aug"),
        "slrnet": few,
        "unimatch_weakly": few,
        "slrnet_labels_only": ("train_aug",),
        "oracle": ("train",),
    }
    (everything,) = cells(plan(tmp_path), ("unimatch",), ("all",), (0,))
    assert everything.splits == ("train", "unlabeled")
    # SLRNet is evaluated by its own rules; its batch norm is new.
    assert "--fp_cut=0.3" in found["slrnet"].steps()[-1].words
    words = found["slrnet_labels_only"].steps()[-1].words
    assert "--fp_cut=0.3" in words and any(w.endswith("/train/reestimated") for w in words)
    names = [step.name for step in found["learning_pseudo_labels"].steps()]
    assert names == ["train", "pseudo_labels", "records", "retrain", "evaluate_val"]
    for cell in found.values():
        for step in cell.steps():
            assert step.name.startswith("evaluate") or "--eval_split" not in step.command


def test_a_grid_goes_on_where_it_failed_and_passes_over_what_is_done(tmp_path, capsys):
    grid = cells(plan(tmp_path))
    first = FakeRunner(fails_at="unimatch-24-seed0 evaluate_val")
    assert run_grid(grid, first) == ["unimatch-24-seed0"]
    # The others went on.
    assert len(first.ran) == 12 and "failed with exit code 1" in capsys.readouterr().out
    again = FakeRunner()
    assert run_grid(grid, again) == []
    assert again.ran == ["unimatch-24-seed0 evaluate_val"]
    assert "supervised-24-seed0: done before" in capsys.readouterr().out
    entries = [json.loads(line) for line in (tmp_path / "out/results.jsonl").open()]
    assert len(entries) == 6
    entry = next(entry for entry in entries if entry["cell"] == "unimatch-24-seed0")
    # The seconds of both tries; the mask count is the records'.
    assert entry["seconds"] == {"train": 30.0, "evaluate_val": 60.0}
    assert entry["masks"] == 24 and entry["trainings"]["train"] == {
        "revision": "abc",
        "steps": 1000,
        "images_with_masks": 4000,
        "other_images": 4000,
    }
    assert "--confidence_threshold" not in entry["flags"]["train"]
    assert "--model_variant=efficientnet_lite0" in entry["flags"]["train"]
    assert entry["commands"] == [step.command for step in grid[1].steps()]


def test_a_kill_costs_nothing_that_was_done(tmp_path):
    grid = cells(plan(tmp_path), ("learning_pseudo_labels",), seeds=(0,))

    class Killed(BaseException):
        pass

    class Kill(FakeRunner):
        def __call__(self, step, log, clock):
            if step.name == "retrain":
                clock(10.0)
                raise Killed
            return super().__call__(step, log, clock)

    with pytest.raises(Killed):
        run_grid(grid, Kill())
    again = FakeRunner()
    run_grid(grid, again)
    name = "learning_pseudo_labels-24-seed0"
    assert again.ran == [f"{name} retrain", f"{name} evaluate_val"]
    (entry,) = (json.loads(line) for line in (tmp_path / "out/results.jsonl").open())
    assert entry["seconds"]["retrain"] == 40.0
    # Lost results come back from the folders, without a command.
    (tmp_path / "out/results.jsonl").unlink()
    last = FakeRunner()
    run_grid(grid, last)
    assert last.ran == [] and (tmp_path / "out/results.jsonl").exists()


def test_a_cell_in_the_results_is_passed_over_without_its_folder(tmp_path):
    grid = cells(plan(tmp_path), ("unimatch",), seeds=(0,))
    run_grid(grid, FakeRunner())
    shutil.rmtree(tmp_path / "out/cells")
    again = FakeRunner()
    run_grid(grid, again)
    assert again.ran == []
    # What it was done with still counts.
    with pytest.raises(UserError, match="eval_crop_size=129,129"):
        run_grid(cells(plan(tmp_path, crop="129,129"), ("unimatch",), seeds=(0,)), again)


def test_a_cell_with_other_flags_is_refused_before_anything_runs(tmp_path):
    run_grid(cells(plan(tmp_path), ("unimatch",), seeds=(0,)), FakeRunner())
    changed = cells(plan(tmp_path, crop="129,129"), ("supervised", "unimatch"), seeds=(0,))
    runner = FakeRunner()
    with pytest.raises(UserError, match="eval_crop_size=129,129"):
        run_grid(changed, runner)
    assert runner.ran == []


def test_a_missing_flagfile_is_told(tmp_path):
    grid = cells(plan(tmp_path, settings_dir=tmp_path))
    with pytest.raises(UserError, match="supervised.flags"):
        run_grid(grid, FakeRunner())


def test_a_mistake_in_a_command_stops_the_grid(tmp_path):
    grid = cells(plan(tmp_path))
    runner = FakeRunner(fails_at="supervised-24-seed0 train", code=2)
    with pytest.raises(UserError, match="the log"):
        run_grid(grid, runner)
    assert runner.ran == ["supervised-24-seed0 train"]
    # Nothing was trained, so that the mended flags are not refused.
    mended = cells(plan(tmp_path, crop="129,129"), ("supervised",), seeds=(0,))
    assert run_grid(mended, FakeRunner()) == []


def test_results_for_choosing_settings_stand_apart_and_share_the_training(tmp_path):
    run_grid(cells(plan(tmp_path), ("unimatch",), seeds=(0,)), FakeRunner())
    again = FakeRunner()
    run_grid(cells(plan(tmp_path, eval_split="tune_seed0"), ("unimatch",), seeds=(0,)), again)
    assert again.ran == ["unimatch-24-seed0 evaluate_tune_seed0"]
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == 1
    tuned = (tmp_path / "out/tune_seed0_results.md").read_text()
    assert "# mIoU on the 445 images of `tune_seed0`" in tuned


def test_masks_that_are_measured_on_may_not_be_learned_from(tmp_path):
    tune = plan(tmp_path, eval_split="tune_seed0")
    photographs.check_splits(tune, cells(tune, ("unimatch",)))
    with pytest.raises(UserError, match="1 images of split 'train', such as t1"):
        photographs.check_splits(tune, cells(tune, ("oracle",)))


def test_the_report_has_means_ranges_gaps_and_budgets(tmp_path):
    one = plan(tmp_path)
    methods = ("supervised", "unimatch", "slrnet_labels_only", "oracle")
    run_grid(cells(one, methods, ("24", "96")), FakeRunner())
    trial = plan(tmp_path, extra=("--confidence_threshold=0.9",), trial="sure")
    run_grid(cells(trial, ("unimatch",), seeds=(0,)), FakeRunner())
    text = (tmp_path / "out/results.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    both = "0.510 (0.500 to 0.520, 2 seeds)"
    assert ["UniMatch", "unlabelled", "", both, both, ""] in rows
    oracle = "0.610 (0.600 to 0.620, 2 seeds)"
    assert ["Supervised (oracle)", "not used", "", "", "", oracle] in rows
    # (0.51 - 0.41) / (0.61 - 0.41)
    assert ["UniMatch", "unlabelled", "50 % (2 seeds)", "50 % (2 seeds)"] in rows
    assert ["UniMatch", "unlabelled", "24", "1000", "4000", "4000", "0.5"] in rows
    assert ["SLRNet", "image-level labels", "0", "1000", "0", "4000", "0.5"] in rows
    assert ["unimatch-24-seed0-sure", "0.500", "`--confidence_threshold=0.9`"] in rows
    chart = xml.etree.ElementTree.parse(tmp_path / "out/learning_curve.svg")
    words = [element.text for element in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert {"24", "96", "437", "UniMatch, unlabelled", "Supervised"} <= set(words)
    assert "SLRNet, image-level labels alone" in words
    # UniMatch at two numbers of masks; supervised ends in the oracle; references have no marks.
    assert len(list(chart.iter("{http://www.w3.org/2000/svg}circle"))) == 2 + 3


def test_gaps_are_those_of_shared_seeds(tmp_path):
    def entry(method, masks, seed, miou):
        return {"method": method, "masks": masks, "seed": seed, "miou": miou}

    groups = grid_report.grouped(
        [
            entry("supervised", 24, 0, 0.4),
            entry("supervised", 24, 1, 0.9),
            entry("unimatch", 24, 0, 0.45),
            entry("oracle", 437, 0, 0.6),
            entry("oracle", 437, 1, 0.7),
        ]
    )
    share, seeds = grid_report.gap_closed(groups, "unimatch", 24)
    assert share == pytest.approx(0.25) and seeds == 1
    assert grid_report.gap_closed(groups, "pseudoseg", 24) is None


def test_a_signal_reaches_the_command_and_ends_the_grid(tmp_path, monkeypatch):
    script = tmp_path / "wait.py"
    script.write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: exit(143))\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(60)\n"
    )
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    ticks = []
    try:
        processes = photographs.Processes()
        step = grid_cells.Step("train", (str(script),))
        with pytest.raises(photographs.Stopped) as stopped:
            processes.run(step, tmp_path / "log", ticks.append)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert stopped.value.exit_code == 130 and 0 < sum(ticks) < 30
    assert "wait.py" in (tmp_path / "log").read_text()


@pytest.fixture
def given(monkeypatch):
    """Sets the program's flags, in a registry of their own, as a command line would."""
    registry = flags.FlagValues()
    define = {
        name: functools.partial(getattr(flags, name), flag_values=registry)
        for name in ("DEFINE_string", "DEFINE_list", "DEFINE_bool")
    }
    monkeypatch.setattr(photographs, "flags", types.SimpleNamespace(**define))
    monkeypatch.setattr(photographs, "FLAGS", registry)
    photographs.define_flags()
    return lambda *words: registry(["photographs.py", *words])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--output_dir=o"], "--dataset_dir is required"),
        (["--extra=--seed=1"], "a trial, which has a name"),
        (["--trial=a/b", "--extra=--x"], "letters, digits"),
        (["--methods=unimach"], "Unknown method"),
        (["--budgets=few"], "--budgets has a value that is no number"),
        (["--seeds=-1"], "--seeds has a value that is no number"),
        (["--settings_dir=nowhere"], "no such folder"),
    ],
)
def test_mistakes_are_told(given, words, message, tmp_path):
    shared = ["--dataset_dir=d", f"--output_dir={tmp_path}"] if words != ["--output_dir=o"] else []
    given(*shared, *words)
    with pytest.raises(UserError, match=re.escape(message)):
        photographs.grid_of(photographs.plan_of())


def test_a_dry_run_prints_what_is_done_and_what_to_do(given, tmp_path, capsys):
    run_grid(cells(plan(tmp_path), ("supervised",), seeds=(0,)), FakeRunner())
    given(
        f"--dataset_dir={tmp_path / 'records'}",
        f"--output_dir={tmp_path / 'out'}",
        "--methods=supervised,unimatch",
        "--budgets=24",
        "--seeds=0",
        "--dry_run",
    )
    assert photographs.main([]) == 0
    text = capsys.readouterr().out
    assert "# 1/2 supervised-24-seed0: finished, mIoU 0.400" in text
    assert "# 2/2 unimatch-24-seed0: to do\npython train_wss.py" in text


def test_folders_of_the_project_stand_in_results_as_seen_from_there(given, tmp_path):
    given(f"--dataset_dir={ROOT / 'records'}", f"--output_dir={tmp_path}")
    one = photographs.plan_of()
    assert one.dataset_dir == pathlib.Path("records")
    assert one.output_dir == tmp_path
    assert one.settings_dir == pathlib.Path("experiments/photographs")


def test_the_program_starts_and_says_what_it_takes():
    assert "--[no]dry_run" in run("experiments/photographs.py", "--help").stdout
