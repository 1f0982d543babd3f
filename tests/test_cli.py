"""The programs end to end, in processes of their own: the whole way, resuming, bad input."""

import io
import json
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import RECORD_SIZE
from tests.extras import NO_CRF
from tests.programs import ROOT, assert_user_error, run, start
from tests.runs import NETWORK, assert_same_weights, end_with, log_of, losses
from tfseg.data import tfexample
from tfseg.data.atomic_writing import ShardWriter
from tfseg.data.specs import load_spec
from tfseg.data.split_index import load_index
from tfseg.weights.checkpoint import find

SIZE = RECORD_SIZE


def train(records, logdir, *extra, **options):
    return run(
        "train_sup.py",
        *NETWORK,
        f"--dataset_dir={records}",
        f"--train_logdir={logdir}",
        "--training_number_of_steps=4",
        "--log_steps=1",
        "--save_summaries_images=false",
        *extra,
        **options,
    )


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("trained") / "run"
    return logdir, train(records, logdir, "--save_summaries_images=true")


# The whole way -----------------------------------------------------------------------------------


def test_training_says_what_it_does_and_keeps_a_record(trained):
    logdir, result = trained
    for word in ("devices: 1 replica(s) on CPU", "network: toy", "8 images", "memory:"):
        assert word in result.stdout
    assert "step 4/4: loss" in result.stdout and "images/s" in result.stdout
    assert f"the run is complete: {logdir / 'model.ckpt-4'} (step 4)" in result.stdout
    record = json.loads((logdir / "config.json").read_text())
    assert record["model"]["decoder_filters"] == 16
    assert record["seed"] == 0 and record["versions"]["tensorflow"]
    assert record["images"] == {"median_sides": [SIZE, SIZE]}
    assert result.stderr == ""


def test_tensorboard_shows_images_labels_and_predictions(records, trained):
    shown = {}
    for path in trained[0].glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            shown |= {value.tag: value.tensor.string_val[2:] for value in event.summary.value}
    pictures = [tf.io.decode_png(x).numpy() for x in shown["image, label, prediction"]]
    assert [picture.shape for picture in pictures] == [(SIZE, 3 * SIZE, 3)] * 4
    assert np.stack(pictures)[:, :, :SIZE].mean() > 5  # Not black.
    colors = load_spec(str(records), "").colors()
    classes = colors[[*range(11), 255]].tolist()
    found = np.unique(np.stack(pictures)[:, :, SIZE:].reshape(-1, 3), axis=0).tolist()
    assert len(found) > 1 and all(color in classes for color in found)


def test_evaluation_and_pictures_take_the_network_from_the_run(records, trained, tmp_path):
    logdir, _ = trained
    shared = (f"--checkpoint_dir={logdir}", f"--dataset_dir={records}")
    run(
        "eval.py",
        *shared,
        f"--eval_logdir={tmp_path / 'eval'}",
        f"--eval_crop_size={SIZE},{SIZE}",
        "--max_number_of_evaluations=1",
        "--eval_scales=0.75",
        "--eval_scales=1",
        "--add_flipped_images",
    )
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["num_images"] == 7 and metrics["step"] == 4
    assert np.sum(metrics["confusion_matrix"]) == 7 * SIZE * SIZE
    prefix = find.newest(str(logdir))
    run(
        "vis.py",
        f"--checkpoint_dir={prefix}",
        f"--dataset_dir={records}",
        f"--vis_logdir={tmp_path / 'vis'}",
        f"--vis_crop_size={SIZE},{SIZE}",
        "--also_save_raw_predictions",
    )
    raw = sorted((tmp_path / "vis" / "raw_segmentation_results").iterdir())
    assert len(raw) == 7
    assert np.asarray(Image.open(raw[0])).shape == (SIZE, SIZE)
    assert "<html" in (tmp_path / "vis" / "index.html").read_text()


def test_pseudo_labels_from_predictions_to_training(records, trained, tmp_path):
    """Predictions restricted to image-level labels become the masks of a second training."""
    logdir, _ = trained
    copy = tmp_path / "records"
    shutil.copytree(records, copy)
    shared = (f"--checkpoint_dir={logdir}", f"--dataset_dir={copy}", "--use_image_labels")
    seen = ("--eval_scales=0.75", "--eval_scales=1", "--merge_scales=logits")
    run(
        "vis.py",
        *shared,
        *seen,
        "--scale_kernel=cubic",
        "--vis_split=train_aug",
        f"--vis_logdir={tmp_path / 'vis'}",
        f"--vis_crop_size={SIZE},{SIZE}",
        "--also_save_raw_predictions",
    )
    aug = load_index(str(copy), "train_aug", load_spec(str(copy), "-"))
    labelled = load_index(str(copy), "train", load_spec(str(copy), "-"))
    (tmp_path / "ids.txt").write_text("\n".join(sorted({*aug.ids, *labelled.ids})))
    build = (
        "tfrecords_tools/build_pseudo_labels.py",
        f"--dataset_dir={copy}",
        "--labelled_split=train",
        f"--ids={tmp_path / 'ids.txt'}",
        "--output_split=train_pseudo",
        f"--output_dir={copy}",
        "--num_workers=2",
    )
    raw = tmp_path / "vis" / "raw_segmentation_results"
    run(*build, f"--pseudo_labels_dir={raw}")
    checked = run("tfrecords_tools/check.py", f"--dataset_dir={copy}", "--num_workers=1")
    assert "no problems" in checked.stdout  # no mask holds what the image-level labels lack
    description = json.loads((copy / "dataset.json").read_text())["splits"]["train_pseudo"]
    pseudo = len({*aug.ids} - {*labelled.ids})
    assert description["num_pseudo_labels"] == pseudo > 0
    assert description["num_masks"] == pseudo + labelled.size
    train(copy, tmp_path / "second", "--train_split=train_pseudo", "--training_number_of_steps=2")
    assert np.isfinite(losses(tmp_path / "second")[-1][1])
    wrong = run(
        *build, f"--pseudo_labels_dir={tmp_path / 'vis' / 'segmentation_results'}", check=False
    )
    assert_user_error(wrong, "has colours", "raw_segmentation_results")


def test_evaluation_with_image_level_labels_and_a_dense_crf(records, trained, tmp_path):
    result = run(
        "eval.py",
        f"--checkpoint_dir={trained[0]}",
        f"--dataset_dir={records}",
        f"--eval_logdir={tmp_path}",
        f"--eval_crop_size={SIZE},{SIZE}",
        "--max_number_of_evaluations=1",
        "--use_image_labels",
        "--dense_crf",
        "--crf_iterations=2",
        "--crf_workers=2",
        "--absent_classes=zero",
        check=False,
    )
    if NO_CRF:
        assert_user_error(result, "--dense_crf", "pip install '.[crf]'")
        return
    assert result.returncode == 0, result.stderr[-2000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert np.sum(metrics["confusion_matrix"]) == 7 * SIZE * SIZE
    assert metrics["prediction"]["use_image_labels"] is True
    assert metrics["prediction"]["dense_crf"]["iterations"] == 2
    assert metrics["absent_classes"] == "zero"


def test_classes_are_filtered_by_a_network_with_image_level_scores(records, tmp_path):
    run_dir = tmp_path / "run"
    train(records, run_dir, "--weakly", "--training_number_of_steps=2")
    settings = (
        f"--checkpoint_dir={run_dir}",
        f"--dataset_dir={records}",
        "--eval_scales=1",
        "--eval_scales=0.5",
        "--add_flipped_images",
        "--merge_scales=masks",
        "--scale_kernel=pillow",
        "--fp_cut=0.1",
        "--topk_classes=1",
        "--bg_pow=0.1",
        "--suppressed_class=3",
    )
    logdir = f"--eval_logdir={tmp_path}"
    run("eval.py", *settings, logdir, "--eval_crop_size=0,0", "--max_number_of_evaluations=1")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert np.sum(metrics["confusion_matrix"]) == 7 * SIZE * SIZE
    assert metrics["prediction"]["class_filter"]["suppressed_class"] == "3"
    run(
        "vis.py",
        *settings,
        f"--vis_logdir={tmp_path}",
        "--vis_crop_size=0,0",
        "--max_side=20",
        "--also_save_raw_predictions",
    )
    raw = sorted((tmp_path / "raw_segmentation_results").glob("*.png"))
    assert len(raw) == 7
    for path in raw:
        with Image.open(path) as image:
            assert image.size == (SIZE, SIZE)
            assert len(set(np.unique(image)) - {0}) <= 1


def test_bfloat16_accumulation_and_averaged_weights_work_together(records, tmp_path):
    train(
        records,
        tmp_path,
        "--mixed_precision=bfloat16",
        "--gradient_accumulation_steps=2",
        "--ema_decay=0.9",
        "--training_number_of_steps=2",
    )
    run(
        "eval.py",
        f"--checkpoint_dir={tmp_path}",
        f"--dataset_dir={records}",
        f"--eval_logdir={tmp_path / 'eval'}",
        f"--eval_crop_size={SIZE},{SIZE}",
        "--max_number_of_evaluations=1",
        "--network=ema",
    )


def test_two_cpu_replicas_with_synchronised_batch_norm(records, tmp_path):
    extra = ("--strategy=mirrored", "--clone_on_cpu", "--num_clones=2", "--sync_batch_norm")
    result = train(records, tmp_path, "--training_number_of_steps=2", *extra)
    assert "devices: 2 replica(s)" in result.stdout


def test_float16_and_weakly(records, tmp_path):
    train(
        records,
        tmp_path,
        "--mixed_precision=float16",
        "--weakly",
        "--training_number_of_steps=2",
    )
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path))
    assert "classification" in log_of(tmp_path)[-1]


# Repeating and resuming --------------------------------------------------------------------------


def test_one_seed_gives_the_same_loss_at_every_step(records, trained, tmp_path):
    train(records, tmp_path / "again")
    assert losses(tmp_path / "again") == losses(trained[0])
    train(records, tmp_path / "other", "--seed=1")
    assert losses(tmp_path / "other") != losses(trained[0])


def long_run(logdir, records):
    return (
        "train_sup.py",
        *NETWORK,
        f"--dataset_dir={records}",
        f"--train_logdir={logdir}",
        "--training_number_of_steps=40",
        "--log_steps=1",
        "--save_interval_steps=5",
        "--save_summaries_images=false",
        "--decoder_output_stride=4",
    )


@pytest.fixture(scope="module")
def uninterrupted(records, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("whole") / "run"
    run(*long_run(logdir, records))
    return logdir


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_reaches_the_same_weights(records, uninterrupted, tmp_path, signum):
    logdir = tmp_path / "run"
    process = start(*long_run(logdir, records), log=tmp_path / "log")
    end_with(signum, process, logdir, after=12)
    assert "Traceback" not in (tmp_path / "log").read_text()
    saved = find.step_of(find.newest(str(logdir)))
    assert 5 <= saved < 40
    resumed = run(*long_run(logdir, records))
    assert f"(step {saved})" in resumed.stdout
    assert_same_weights(uninterrupted, logdir)
    assert losses(logdir) == losses(uninterrupted)


def test_a_finished_run_does_nothing_when_repeated(records, trained, tmp_path):
    logdir = tmp_path / "run"
    shutil.copytree(trained[0], logdir)
    before = {path.name: path.stat().st_mtime_ns for path in logdir.rglob("*")}
    fewer = "--training_number_of_steps=3"
    result = train(records, logdir, "--save_summaries_images=true", "--momentum=0.8", fewer)
    assert f"complete: {logdir / 'model.ckpt-4'} (step 4, {fewer})" in result.stdout
    # Nothing is built, and no file of the run is touched or added.
    assert "network:" not in result.stdout and "step 4/4" not in result.stdout
    after = {path.name: path.stat().st_mtime_ns for path in logdir.rglob("*")}
    assert after.keys() - before.keys() <= {".train.lock"}
    assert {name: after[name] for name in before if name != ".train.lock"} == {
        name: time for name, time in before.items() if name != ".train.lock"
    }


def test_a_run_does_not_go_on_with_another_split_unasked(records, trained, tmp_path):
    logdir = tmp_path / "run"
    shutil.copytree(trained[0], logdir)
    extra = ("--train_split=val", "--training_number_of_steps=5")
    result = train(records, logdir, *extra, check=False)
    assert_user_error(result, "split val", "split train", "--allow_changed_data")


@pytest.mark.parametrize(
    "extra, words",
    [
        (
            ("--decoder_filters=8",),
            ("--decoder_filters=8", "--decoder_filters=16", "give --decoder_filters as it was"),
        ),
        (("--weakly",), ("--weakly=True", "--weakly=False")),
    ],
    ids=lambda x: " ".join(x),
)
def test_another_run_cannot_take_over_a_training_directory(
    records, trained, tmp_path, extra, words
):
    logdir = tmp_path / "run"
    shutil.copytree(trained[0], logdir)
    before = (logdir / "config.json").read_text()
    result = train(records, logdir, *extra, check=False)
    assert_user_error(result, "holds another run", "--train_logdir", *words)
    assert (logdir / "config.json").read_text() == before


def test_a_run_that_goes_on_with_other_settings_says_so(records, trained, tmp_path):
    logdir = tmp_path / "run"
    shutil.copytree(trained[0], logdir)
    result = train(records, logdir, "--momentum=0.8", "--log_steps=2")
    (note,) = (x for x in result.stdout.splitlines() if "goes on with other settings" in x)
    assert "--momentum: 0.9 -> 0.8" in note and "log_steps" not in note


# Bad input ---------------------------------------------------------------------------------------


def test_wrong_flag(records, tmp_path):
    result = train(records, tmp_path, "--base_learning_rat=1", check=False)
    assert_user_error(result, "base_learning_rat", "--base_learning_rate")


def test_missing_required_flag():
    assert_user_error(run("train_sup.py", check=False), "--dataset_dir is required")


def test_unknown_split_names_those_present(records, tmp_path):
    result = train(records, tmp_path, "--train_split=labelled", check=False)
    assert_user_error(result, "labelled", "train, train_aug, val")


def test_training_among_the_records(records):
    before = sorted(records.iterdir())
    result = train(records, records, check=False)
    assert_user_error(result, "--train_logdir is a folder of records")
    assert sorted(records.iterdir()) == before


def test_missing_directory(tmp_path):
    result = train(tmp_path / "nowhere", tmp_path, check=False)
    assert_user_error(result, str(tmp_path / "nowhere"))


def test_empty_split(records, tmp_path):
    copy = tmp_path / "records"
    copy.mkdir()
    (copy / "train-00000-of-00001.tfrecord").write_bytes(b"")
    assert_user_error(train(copy, tmp_path / "run", check=False), "train")
    assert not (tmp_path / "run").exists()


def test_crop_size_that_is_no_multiple_of_the_stride_plus_one(records, tmp_path):
    result = train(records, tmp_path, "--train_crop_size=512,512", check=False)
    assert_user_error(result, "--train_crop_size", "512,512", "513,513 or 529,529")


def test_unreadable_initial_checkpoint(records, tmp_path):
    (tmp_path / "model.ckpt.index").write_bytes(b"this is no checkpoint")
    result = train(
        records,
        tmp_path / "run",
        f"--tf_initial_checkpoint={tmp_path / 'model.ckpt'}",
        check=False,
    )
    assert_user_error(result, "model.ckpt")


def test_gpu_strategy_without_a_gpu(records, tmp_path):
    extra = ("--strategy=mirrored", "--num_clones=2")
    result = run(
        "train_sup.py",
        *NETWORK,
        *extra,
        f"--dataset_dir={records}",
        f"--train_logdir={tmp_path}",
        check=False,
    )
    if "devices: 2" in result.stdout:
        pytest.skip("this machine has GPUs")
    assert_user_error(result, "--strategy", "none", "--clone_on_cpu")


def test_batch_that_the_replicas_cannot_divide(records, tmp_path):
    extra = ("--strategy=mirrored", "--clone_on_cpu", "--num_clones=2", "--train_batch_size=3")
    result = train(records, tmp_path, *extra, check=False)
    assert_user_error(result, "--train_batch_size", "multiple of 2")


def test_other_classes_than_the_checkpoint(records, trained, tmp_path):
    copy = tmp_path / "records"
    shutil.copytree(records, copy)
    description = json.loads((copy / "dataset.json").read_text())
    description["class_names"] = [*description["class_names"], "ten"]
    description["palette"] = None
    (copy / "dataset.json").write_text(json.dumps(description))
    result = run(
        "eval.py",
        f"--checkpoint_dir={trained[0]}",
        f"--dataset_dir={copy}",
        f"--eval_logdir={tmp_path / 'eval'}",
        f"--eval_crop_size={SIZE},{SIZE}",
        "--max_number_of_evaluations=1",
        check=False,
    )
    assert_user_error(result, "classes", "12", "11")
    assert not (tmp_path / "eval").exists()


def test_flag_that_contradicts_the_training_run(records, trained, tmp_path):
    result = run(
        "vis.py",
        "--decoder_filters=256",
        f"--checkpoint_dir={trained[0]}",
        f"--dataset_dir={records}",
        f"--vis_logdir={tmp_path}",
        check=False,
    )
    assert_user_error(result, "--decoder_filters", "16")


@pytest.mark.parametrize(
    "extra, words",
    [
        (("--fp_cut=0.3",), ("no image-level scores", "--method=slrnet")),
        (("--eval_scales=0.5",), ("--eval_scales", "must include 1")),
        (("--fp_cut=1.5",), ("--fp_cut",)),
    ],
    ids=lambda x: " ".join(x),
)
def test_classes_that_cannot_be_filtered(records, trained, tmp_path, extra, words):
    result = run(
        "vis.py",
        f"--checkpoint_dir={trained[0]}",
        f"--dataset_dir={records}",
        f"--vis_logdir={tmp_path}",
        f"--vis_crop_size={SIZE},{SIZE}",
        "--merge_scales=masks",
        *extra,
        check=False,
    )
    assert_user_error(result, *words)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_label_ids_beyond_the_class_count(tmp_path):
    """Records of another program: no index, no dataset.json, no image-level labels."""
    (tmp_path / "records").mkdir()
    image = np.random.default_rng(0).integers(0, 256, [SIZE, SIZE, 3], np.uint8)
    mask = np.zeros([SIZE, SIZE], np.uint8)
    mask[3, 4] = 200
    shard = tmp_path / "records" / "train-00000-of-00001.tfrecord"
    with ShardWriter(str(shard)) as writer:
        for i in range(4):
            writer.write(
                tfexample.encode(
                    image=png(image),
                    filename=f"im{i}",
                    height=SIZE,
                    width=SIZE,
                    label=png(mask if i == 2 else 0 * mask),
                )
            )
    result = train(tmp_path / "records", tmp_path / "run", check=False)
    assert_user_error(
        result, "beyond the class count", "200", "im2", "image/segmentation/class/encoded"
    )


def test_no_space_left_keeps_the_previous_checkpoint(records, trained, tmp_path):
    logdir = tmp_path / "run"
    shutil.copytree(trained[0], logdir)
    # No file may grow beyond half of its size: the checkpoint cannot be written.
    size = os.path.getsize(logdir / "model.ckpt-4.data-00000-of-00001")
    result = train(
        records,
        logdir,
        "--training_number_of_steps=6",
        check=False,
        largest_file=size // 2,
    )
    assert_user_error(result, str(logdir))
    assert find.newest(str(logdir)).endswith("model.ckpt-4")
    assert not [n for n in os.listdir(logdir) if n.startswith(".writing")]


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_a_flipped_byte_stops_with_file_record_and_offset(records, tmp_path):
    copy = tmp_path / "records"
    shutil.copytree(records, copy)
    shard = sorted(copy.glob("train-*"))[0]
    flip_byte(shard, shard.stat().st_size // 2)
    result = train(copy, tmp_path / "run", check=False)
    assert_user_error(result, shard.name, "record", "byte")


def test_skip_bad_records_replaces_and_lists_them(records, tmp_path):
    copy = tmp_path / "records"
    shutil.copytree(records, copy)
    shard = sorted(copy.glob("train-*"))[0]
    flip_byte(shard, shard.stat().st_size // 2)
    extra = ("--skip_bad_records", "--max_bad_record_fraction=0.2")
    train(copy, tmp_path / "run", *extra)
    lines = (tmp_path / "run" / "bad_records.txt").read_text().splitlines()
    assert len(lines) == 1 and shard.name in lines[0]
    too_many = train(copy, tmp_path / "strict", "--skip_bad_records", check=False)
    assert_user_error(too_many, "--max_bad_record_fraction")


def test_a_truncated_shard_stops_before_training(records, tmp_path):
    copy = tmp_path / "records"
    shutil.copytree(records, copy)
    shard = sorted(copy.glob("train-*"))[0]
    os.truncate(shard, shard.stat().st_size - 7)
    result = train(copy, tmp_path / "run", check=False)
    assert_user_error(result, shard.name)
    assert not (tmp_path / "run").exists()


def test_published_commands_parse(tmp_path):
    """The published flags, dead ones included, get as far as the missing data."""
    result = run(
        "train_sup.py",
        "--logtostderr",
        "--train_split=2_clean",
        "--model_variant=xception_65",
        "--atrous_rates=6",
        "--atrous_rates=12",
        "--atrous_rates=18",
        "--output_stride=16",
        "--decoder_output_stride=4",
        "--train_crop_size=513,513",
        "--num_clones=16",
        "--train_batch_size=64",
        "--training_number_of_steps=30000",
        "--fine_tune_batch_norm=true",
        "--startup_delay_steps=15",
        "--quantize_delay_step=-1",
        f"--train_logdir={tmp_path / 'run'}",
        f"--dataset_dir={tmp_path}",
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.count("has no effect") == 2
    assert (ROOT / "train_sup.py").exists()
