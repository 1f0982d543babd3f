"""Training runs in processes of their own: the small network, what they leave, how to stop them."""

import json
import pathlib
import signal
import time

import numpy as np

from tests.conftest import RECORD_SIZE
from tests.programs import run
from tfseg.weights.checkpoint import find, reading

NETWORK = (
    "--model_variant=toy",
    "--aspp_convs_filters=16",
    "--decoder_filters=16",
    f"--train_crop_size={RECORD_SIZE},{RECORD_SIZE}",
    "--train_batch_size=4",
    "--num_clones=1",
)


# train_wss.py on `records`.
WSS = (
    "train_wss.py",
    *NETWORK,
    "--train_split=train",
    "--train_split_cls=train_aug",
    "--decoder_output_stride=4",
    "--cutout_half_size=5",
    "--log_steps=1",
    "--save_summaries_images=false",
)


def arguments(records, logdir, *extra, steps=2):
    """Returns the command line of a short run of train_wss.py."""
    return (
        *WSS,
        f"--dataset_dir={records}",
        f"--train_logdir={logdir}",
        f"--training_number_of_steps={steps}",
        *extra,
    )


def evaluate(trained, records, out, *extra):
    """Evaluates the newest checkpoint of a run once; returns the content of metrics.json."""
    run(
        "eval.py",
        f"--checkpoint_dir={trained}",
        f"--dataset_dir={records}",
        f"--eval_logdir={out}",
        f"--eval_crop_size={RECORD_SIZE},{RECORD_SIZE}",
        "--max_number_of_evaluations=1",
        *extra,
    )
    return json.loads((out / "metrics.json").read_text())


def log_of(logdir):
    return [json.loads(x) for x in (pathlib.Path(logdir) / "train_log.jsonl").open()]


def losses(logdir):
    return [(entry["step"], entry["loss"]) for entry in log_of(logdir)]


def final_values(logdir):
    return dict(reading.values(find.newest(str(logdir))))


def assert_same_weights(first, second):
    a, b = final_values(first), final_values(second)
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def wait_for_steps(logdir, process, steps):
    path = logdir / "train_log.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {steps} steps were logged (exit code {process.poll()})")


def end_with(signum, process, logdir, *, after):
    """Sends a signal once `after` steps are logged; the exit code must tell which it was."""
    wait_for_steps(logdir, process, after)
    process.send_signal(signum)
    code = process.wait(timeout=100)
    assert code == (-signal.SIGKILL if signum == signal.SIGKILL else 128 + signum)
