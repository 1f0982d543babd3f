"""train_wss.py in processes of its own: regimes, resuming, several workers, bad input."""

import json
import os
import shutil
import signal
import socket

import numpy as np
import pytest

from tests.conftest import RECORD_SIZE
from tests.programs import assert_user_error, run, start
from tests.runs import (
    arguments,
    assert_same_weights,
    end_with,
    final_values,
    log_of,
    losses,
    wait_for_steps,
)
from tfseg.errors import UserError
from tfseg.runs.training_directory import sole_run
from tfseg.weights.checkpoint import find

# Regimes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("wss") / "run"
    run(*arguments(records, logdir, "--weakly=true", "--save_summaries_images=true"))
    return logdir


def test_a_run_keeps_losses_monitors_and_the_methods_settings(trained):
    entry = log_of(trained)[-1]
    assert {"segmentation", "sgc", "classification", "consistency", "l2"} <= set(entry)
    assert {"fused_miou", "decoder_accuracy", "pseudo_label_coverage"} <= set(entry["monitors"])
    record = json.loads((trained / "config.json").read_text())
    assert record["train"]["method"] == "pseudoseg" and record["train"]["weakly"]
    assert record["method"]["att_strides"] == [15, 16] and record["method"]["temperature"] == 0.5


def test_evaluation_and_pictures_of_the_deployable_network(records, trained, tmp_path):
    shared = (f"--checkpoint_dir={trained}", f"--dataset_dir={records}")
    run(
        "eval.py",
        *shared,
        f"--eval_logdir={tmp_path / 'eval'}",
        f"--eval_crop_size={RECORD_SIZE},{RECORD_SIZE}",
        "--max_number_of_evaluations=1",
        "--weakly",
    )
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["num_images"] == 7
    run(
        "vis.py",
        *shared,
        f"--vis_logdir={tmp_path / 'vis'}",
        f"--vis_crop_size={RECORD_SIZE},{RECORD_SIZE}",
    )
    assert (tmp_path / "vis" / "index.html").exists()


def by_night(*extra):
    return pytest.param(extra, marks=pytest.mark.nightly)


@pytest.mark.parametrize(
    "extra",
    [
        by_night(
            *("--separate_passes", "--gradient_accumulation_steps=2", "--mixed_precision=bfloat16")
        ),
        by_night("--mixed_precision=float16", "--image_label_source=crop", "--weakly"),
        by_night(
            *("--strategy=mirrored", "--clone_on_cpu", "--num_clones=2", "--sync_batch_norm"),
            *("--ema_decay=0.9", "--deterministic", "--hard_example_mining_step=4"),
        ),
    ],
    ids=lambda extra: " ".join(extra),
)
def test_it_works_with(records, tmp_path, extra):
    run(*arguments(records, tmp_path, *extra))
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path))
    assert find.step_of(find.newest(str(tmp_path))) == 2


def assert_jit_gives_the_same_losses(records, folder, *extra, steps):
    extra = ("--aspp_dropout_rate=0", "--classifier_dropout_rate=0", *extra)
    run(*arguments(records, folder / "jit", "--jit_compile", *extra, steps=steps))
    run(*arguments(records, folder / "plain", *extra, steps=steps))
    np.testing.assert_allclose(losses(folder / "jit"), losses(folder / "plain"), rtol=1e-5)


@pytest.mark.nightly
def test_jit_compiled_steps_give_the_same_losses(records, tmp_path):
    assert_jit_gives_the_same_losses(records, tmp_path, "--fine_tune_batch_norm=false", steps=3)


@pytest.mark.nightly
def test_jit_compiled_batch_norm_gives_the_same_loss(records, tmp_path):
    # One step: XLA rounds otherwise, and normalising by 36 samples amplifies that in the gradients.
    assert_jit_gives_the_same_losses(records, tmp_path, steps=1)


# Repeating and resuming -------------------------------------------------------------------------


def long_run(records, logdir):
    extra = ("--deterministic", "--weakly", "--save_interval_steps=4")
    return arguments(records, logdir, *extra, steps=24)


@pytest.fixture(scope="module")
def uninterrupted(records, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("whole") / "run"
    run(*long_run(records, logdir))
    return logdir


@pytest.mark.nightly
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_reaches_the_same_weights(records, uninterrupted, tmp_path, signum):
    logdir = tmp_path / "run"
    process = start(*long_run(records, logdir), log=tmp_path / "log")
    wait_for_steps(logdir, process, 2)
    with pytest.raises(UserError, match=f"process {process.pid} on "), sole_run(logdir, True):
        pass
    end_with(signum, process, logdir, after=10)
    saved = find.step_of(find.newest(str(logdir)))
    assert 4 <= saved < 24
    assert f"(step {saved})" in run(*long_run(records, logdir)).stdout
    assert_same_weights(uninterrupted, logdir)
    whole, resumed = ([drop_speed(e) for e in log_of(d)] for d in (uninterrupted, logdir))
    assert whole == resumed


def drop_speed(entry):
    return {name: value for name, value in entry.items() if name != "images_per_second"}


@pytest.mark.nightly
def test_a_damaged_checkpoint_falls_back_and_goes_on_alike(records, uninterrupted, tmp_path):
    logdir = tmp_path / "run"
    run(*long_run(records, logdir))
    newest = find.newest(str(logdir))
    path = next(
        p for p in logdir.iterdir() if p.name.startswith(os.path.basename(newest) + ".data")
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "(step 20)" in run(*long_run(records, logdir)).stdout
    assert_same_weights(uninterrupted, logdir)


# Several workers --------------------------------------------------------------------------------


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(logdirs, *program):
    """Starts one process per log directory as the workers of one cluster."""
    addresses = [f"localhost:{port}" for port in free_ports(len(logdirs))]
    processes = []
    for index, logdir in enumerate(logdirs):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        arguments = (*program, "--strategy=multi_worker", f"--train_logdir={logdir}")
        log = logdir.parent / f"{logdir.name}.{index}.log"
        processes.append(start(*arguments, log=log, TF_CONFIG=json.dumps(cluster)))
    return processes


def outputs_of(workers, timeout):
    """Waits until all workers have ended; returns what each printed."""
    for worker in workers:
        worker.wait(timeout)
    return [worker.output.read_text() for worker in workers]


EQUAL = (
    "--sync_batch_norm",
    "--aspp_dropout_rate=0",
    "--classifier_dropout_rate=0",
    "--save_summaries_images=true",
)


def assert_close_weights(first, second, tolerance):
    one, two = final_values(first), final_values(second)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.startswith("networks/"):
            scale = max(np.abs(value).max(), 1.0)
            np.testing.assert_allclose(
                two[name], value, rtol=0, atol=tolerance * scale, err_msg=name
            )


def run_two_workers(logdir, program):
    workers = start_workers([logdir] * 2, *program)
    outputs = outputs_of(workers, timeout=280)
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert "2 replica(s)" in outputs[0]


@pytest.mark.nightly
def test_two_workers_agree_with_two_replicas(records, tmp_path):
    run_two_workers(tmp_path / "two", arguments(records, tmp_path / "unused", *EQUAL))
    replicas = ("--strategy=mirrored", "--clone_on_cpu", "--num_clones=2")
    run(*arguments(records, tmp_path / "replicas", *EQUAL, *replicas))
    run(*arguments(records, tmp_path / "one", *EQUAL, steps=1))
    two, mirrored, one = (losses(tmp_path / name) for name in ("two", "replicas", "one"))
    np.testing.assert_allclose(two, mirrored, rtol=1e-4)
    assert_close_weights(tmp_path / "two", tmp_path / "replicas", 1e-4)
    # One replica rounds sums otherwise, which normalising by 36 samples amplifies in the gradients.
    np.testing.assert_allclose(two[0], one[0], rtol=1e-5)


@pytest.mark.parametrize(
    "method", ["supervised", pytest.param("pseudoseg", marks=pytest.mark.nightly)]
)
def test_two_workers_agree_with_one_process(records, tmp_path, method):
    extra = (f"--method={method}", "--aspp_dropout_rate=0", "--fine_tune_batch_norm=false")
    extra += ("--sync_batch_norm",)
    if method == "pseudoseg":
        extra += ("--classifier_dropout_rate=0", "--save_summaries_images=true")
    run_two_workers(tmp_path / "two", arguments(records, tmp_path / "unused", *extra))
    run(*arguments(records, tmp_path / "one", *extra))
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    assert_close_weights(tmp_path / "two", tmp_path / "one", 1e-5)


def test_a_signal_to_one_worker_saves_and_stops_both(records, tmp_path):
    extra = ("--method=supervised", "--save_interval_steps=4")
    program = arguments(records, tmp_path / "unused", *extra, steps=4000)
    workers = start_workers([tmp_path / "run"] * 2, *program)
    wait_for_steps(tmp_path / "run", workers[0], 5)
    workers[1].send_signal(signal.SIGTERM)
    outputs = outputs_of(workers, timeout=200)
    assert [worker.returncode for worker in workers] == [143, 143], outputs
    assert "run the same command again" in outputs[0]
    saved = find.step_of(find.newest(str(tmp_path / "run")))
    assert saved == log_of(tmp_path / "run")[-1]["step"]


# Bad input --------------------------------------------------------------------------------------


def test_weakly_without_image_level_labels(records, tmp_path):
    from tests.small_split import make_images, write_split

    images, labels = make_images(sizes=((RECORD_SIZE, RECORD_SIZE),) * 4)
    write_split(tmp_path / "data", images, labels, split="train")
    write_split(tmp_path / "data", images, [None] * 4, split="train_aug")
    result = run(*arguments(tmp_path / "data", tmp_path / "run", "--weakly"), check=False)
    assert_user_error(result, "train_aug", "image-level labels", "leave out --weakly")


def test_splits_of_different_classes(records, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(records, other)
    content = json.loads((other / "dataset.json").read_text())
    content["class_names"][3] = "three"
    (other / "dataset.json").write_text(json.dumps(content))
    result = run(*arguments(records, tmp_path / "run", f"--dataset_dir_cls={other}"), check=False)
    assert_user_error(result, "different classes", "--dataset_dir_cls", "three")


@pytest.mark.parametrize(
    "extra, words",
    [
        (("--att_strides=15,17",), ("--att_strides", "17", "16")),
        (("--method=supervised", "--temperature=0.3"), ("--temperature", "pseudoseg")),
        (("--temperature=0",), ("--temperature",)),
        (("--jitter_strength=2",), ("--jitter_strength=2", "[0, 1]")),
        (("--cutout_half_size=-1",), ("--cutout_half_size=-1",)),
        (("--unlabeled_ramp_up_steps=-5",), ("--unlabeled_ramp_up_steps=-5",)),
        (("--att_strides=a,b",), ("--att_strides", "numbers")),
        (("--train_split_cls=nothing",), ("nothing", "train_aug")),
        (("--method=pseudosegg",), ("--method", "pseudoseg")),
        (("--augmentation=composition",), ("--augmentation", "'unlabelled'", "supervised")),
        (("--augmentation=mixed",), ("--augmentation", "deeplab|composition")),
        (
            ("--augmentation=composition", "--augmentation_ops=-1"),
            ("--augmentation_ops=-1", "non-negative"),
        ),
        (("--augmentation_ops=3",), ("--augmentation_ops", "--augmentation=composition")),
        (
            ("--augmentation=composition", "--scale_factor_step_size=0"),
            ("--scale_factor_step_size", "--augmentation=deeplab"),
        ),
        (
            ("--augmentation=resized_crop", "--min_scale_factor=1"),
            ("--min_scale_factor", "--augmentation=deeplab or composition"),
        ),
        (("--crop_area=0.5,1",), ("--crop_area", "--augmentation=resized_crop")),
        (("--padding_color=black",), ("--padding_color", "--augmentation=warped_crop")),
        (
            ("--method=supervised", "--augmentation=resized_crop", "--crop_area=0.9"),
            ("--crop_area", "smallest,largest"),
        ),
        (("--augmentation=resized_crop",), ("--augmentation=resized_crop", "'unlabelled'")),
    ],
    ids=lambda x: " ".join(x),
)
def test_wrong_input(records, tmp_path, extra, words):
    result = run(*arguments(records, tmp_path, *extra), check=False)
    assert_user_error(result, *words)


def test_a_flag_of_another_method_in_the_supervised_program(records, tmp_path):
    result = run(
        "train_sup.py",
        f"--dataset_dir={records}",
        f"--train_logdir={tmp_path}",
        "--unlabeled_weight=2",
        check=False,
    )
    assert_user_error(result, "--unlabeled_weight", "--method=supervised", "train_wss.py")


@pytest.mark.nightly
def test_composed_augmentation_in_a_program(records, tmp_path):
    extra = ("--method=supervised", "--augmentation=composition", "--augmentation_ops=3")
    run(*arguments(records, tmp_path, *extra))
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path))
    data = json.loads((tmp_path / "config.json").read_text())["data"]
    assert (data["augmentation"], data["augmentation_ops"]) == ("composition", 3)


@pytest.mark.nightly
def test_resized_crops_in_a_program(records, tmp_path):
    extra = ("--method=supervised", "--augmentation=resized_crop", "--crop_area=0.5,1")
    run(*arguments(records, tmp_path, *extra))
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path))
    data = json.loads((tmp_path / "config.json").read_text())["data"]
    assert (data["augmentation"], data["crop_area"]) == ("resized_crop", [0.5, 1.0])


def test_a_cut_out_as_large_as_the_crop_is_noted(records, tmp_path):
    # Said before the wrong flag is found.
    extra = ("--cutout_half_size=50", "--att_strides=17")
    result = run(*arguments(records, tmp_path, *extra), check=False)
    assert "--cutout_half_size=8" in result.stdout
