"""The demo of `make demo`: scenes of handwritten digits, from nothing to a gallery.

Makes the records; trains the supervised baseline on a few labelled scenes, and PseudoSeg on these
and many more, first unlabelled, then with image-level labels; evaluates each and draws its
predictions: ordinary commands, printed before they run. Then prints a table. A second run reuses
what is there.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Side of the scenes, pixels.
_SIDE = 97
# Row of the table, flagfile, program.
_RUNS = (
    ("supervised, 24 masks", "digits", "train_sup.py"),
    ("PseudoSeg, 24 masks + unlabelled", "digits_pseudoseg", "train_wss.py"),
    ("PseudoSeg, 24 masks + image labels", "digits_pseudoseg_weakly", "train_wss.py"),
)


def run(*arguments: str) -> None:
    """Runs one of the project's programs and shows the command first."""
    print("\n$ python " + " ".join(shlex.quote(a) for a in arguments), flush=True)
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT)
    if result.returncode:
        sys.exit(result.returncode)


def train_and_evaluate(name: str, program: str, output: pathlib.Path, *extra: str) -> dict:
    """Trains, evaluates and draws one row of the table; returns its metrics."""
    records, logdir = str(output / "records"), output / name
    run(
        program,
        f"--flagfile=experiments/{name}.flags",
        f"--dataset_dir={records}",
        f"--train_logdir={logdir}",
        *extra,
    )
    shared = (f"--checkpoint_dir={logdir}", f"--dataset_dir={records}")
    run(
        "eval.py",
        *shared,
        f"--eval_logdir={logdir / 'eval'}",
        f"--eval_crop_size={_SIDE},{_SIDE}",
        "--eval_batch_size=8",
        "--max_number_of_evaluations=1",
    )
    run(
        "vis.py",
        *shared,
        f"--vis_logdir={logdir / 'vis'}",
        f"--vis_crop_size={_SIDE},{_SIDE}",
        "--also_save_raw_predictions",
    )
    return json.loads((logdir / "eval" / "metrics.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=pathlib.Path, default=ROOT / "demo_output")
    parser.add_argument("--steps", type=int, default=None, help="training steps, for a quick look")
    options = parser.parse_args()
    output = options.output_dir.resolve()
    started = time.monotonic()
    run(
        "tfrecords_tools/build_digits.py",
        f"--output_dir={output / 'records'}",
        f"--image_size={_SIDE}",
        "--num_digits=4",
        "--num_train=24",
    )
    extra = [] if options.steps is None else [f"--training_number_of_steps={options.steps}"]
    rows = {
        title: (name, train_and_evaluate(name, program, output, *extra))
        for title, name, program in _RUNS
    }
    minutes = (time.monotonic() - started) / 60

    print(f"\n{'training':<38} {'mIoU':>6} {'pixel accuracy':>15}   pictures")
    for title, (name, metrics) in rows.items():
        gallery = output / name / "vis" / "index.html"
        print(f"{title:<38} {metrics['miou']:6.3f} {metrics['pixel_accuracy']:15.3f}   {gallery}")
    print(f"\n{metrics['num_images']} validation scenes, {minutes:.1f} minutes. Open the pictures")
    print("in a browser; they are sorted worst first.")


if __name__ == "__main__":
    main()
