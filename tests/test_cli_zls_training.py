"""Zero-label methods through the programs: stages, rounds, resuming, three modes, pictures."""

import functools
import io
import json
import signal

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import RECORD_SIZE
from tests.programs import assert_user_error, run, start
from tests.runs import NETWORK, assert_same_weights, end_with, evaluate, log_of, losses
from tests.small_split import numpy_confusion
from tfseg.data.tfexample import LABEL
from tfseg.settings.programs import training

DIGITS = [str(i) for i in range(10)]
SPLIT = {"seen": DIGITS[:7], "unseen": DIGITS[7:], "validation": ["6"], "background": "background"}
# As class ids; background is 0.
SEEN, UNSEEN = range(8), range(8, 11)
MODES = ("generalised", "zero_label", "vanilla")
SIZE = f"{RECORD_SIZE},{RECORD_SIZE}"
STEPS = 12


@pytest.fixture(scope="module")
def train(records, tmp_path_factory):
    """Returns a function that makes the command line of a run."""
    path = tmp_path_factory.mktemp("zls") / "split.json"
    path.write_text(json.dumps(SPLIT))
    vectors = f"--class_embeddings={records / 'class_embeddings.npz'}"

    def arguments(logdir, method, *extra, embeddings=True, steps=STEPS):
        return (
            "train_zls.py",
            *NETWORK,
            f"--method={method}",
            "--decoder_output_stride=4",
            "--aspp_convs_filters=16",
            "--decoder_filters=16",
            "--batch_norm_momentum=0.5",
            "--log_steps=1",
            "--save_summaries_images=false",
            f"--training_number_of_steps={steps}",
            f"--class_split={path}",
            *([vectors] if embeddings else []),
            f"--dataset_dir={records}",
            f"--train_logdir={logdir}",
            *extra,
        )

    return arguments


def continuing(trained):
    return (f"--tf_initial_checkpoint={trained}", "--initialize_last_layer")


@pytest.fixture(scope="module")
def step1(train, tmp_path_factory):
    """ZS3Net's first step: seen classes, an ordinary classifier."""
    logdir = tmp_path_factory.mktemp("step1") / "run"
    run(*train(logdir, "spnet", "--head=deeplab", embeddings=False, steps=4))
    return logdir


@pytest.fixture(scope="module")
def stages(train, tmp_path_factory, request):
    """The command line of each method by its name, a function of the directory; and its run."""
    folder = tmp_path_factory.mktemp("trained")

    def command(name, logdir):
        if name == "spnet":
            return train(logdir, "spnet", "--save_interval_steps=5")
        if name == "strict":
            # Saved where a round ends and the next has not begun.
            extra = ("--rounds=2", "--view_scales=1.5", f"--save_interval_steps={STEPS // 2}")
            return train(logdir, "strict", *continuing(trained("spnet")), *extra)
        if name == "zs3net":
            initial = f"--tf_initial_checkpoint={request.getfixturevalue('step1')}"
            extra = ("--generator_samples=16", "--generator_hidden=8", "--save_interval_steps=5")
            return train(logdir, "zs3net", initial, "--last_layers_contain_logits_only", *extra)
        extra = ("--head=deeplab", "--rounds=2", "--save_interval_steps=5", "--view_scales=")
        extra += ("--mirror_views=false", "--generator_classes=all", "--disagreeing=ignore")
        extra += ("--pseudo_label_share=25", *continuing(trained("zs3net")))
        return train(logdir, "strict", *extra, embeddings=False)

    @functools.cache
    def trained(name):
        run(*command(name, folder / name))
        return folder / name

    return command, trained


ALL = ("spnet", "strict", "zs3net", "zs5")


def by_night(*names):
    return [pytest.param(name, marks=pytest.mark.nightly) for name in names]


# What a kill can lose is alike in all methods: their state is held by test_methods.
@pytest.mark.parametrize("name", ["strict", *by_night("spnet", "zs3net", "zs5")])
def test_a_killed_run_reaches_the_same_weights(stages, tmp_path, name):
    command, trained = stages
    whole, logdir = trained(name), tmp_path / "run"
    process = start(*command(name, logdir), log=tmp_path / "log")
    end_with(signal.SIGKILL, process, logdir, after=STEPS // 2 + 1)
    run(*command(name, logdir))
    assert_same_weights(whole, logdir)
    assert losses(whole) == losses(logdir)
    assert [step for step, _ in losses(logdir)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("name", ["strict", *by_night("zs5")])
def test_every_round_starts_at_the_full_rate(stages, name):
    log = log_of(stages[1](name))
    rates, period = [entry["learning_rate"] for entry in log], STEPS // 2
    assert rates[:period] == rates[period:] and rates[0] > rates[1] > rates[2]
    assert "pseudo_label_precision" in log[-1]["monitors"]


def test_methods_have_networks_of_their_own_where_no_flag_tells():
    found = {}
    for name in ALL:
        given = {"method": name, "dataset_dir": "records", "train_logdir": "run"}
        if name == "zs5":
            given |= {"method": "strict", "head": "deeplab"}
        network = training(given, default_method="spnet").network
        found[name] = (network.head, network.fine_tune_batch_norm)
    assert found == {
        "spnet": ("projection", True),
        "strict": ("projection", False),
        "zs3net": ("deeplab", True),
        "zs5": ("deeplab", False),
    }


def masks_of(records):
    """Returns the masks of the split val by id."""
    masks = {}
    for path in sorted(records.glob("val-*.tfrecord")):
        for record in tf.data.TFRecordDataset(str(path)):
            feature = tf.train.Example.FromString(record.numpy()).features.feature
            name, mask = (feature[k].bytes_list.value[0] for k in ("image/filename", LABEL))
            masks[name.decode()] = np.array(Image.open(io.BytesIO(mask)))
    return masks


@pytest.mark.parametrize("name", ["strict", "zs3net", *by_night("spnet", "zs5")])
def test_three_modes_and_pictures(records, stages, tmp_path, name):
    trained, masks = stages[1](name), masks_of(records)
    metrics = evaluate(trained, records, tmp_path / "eval")
    matrix = np.array(metrics["confusion_matrix"])
    labels = np.concatenate([mask.ravel() for mask in masks.values()])
    counts = np.bincount(labels, minlength=256)
    np.testing.assert_array_equal(matrix.sum(1), counts[: len(matrix)])
    assert matrix.sum() == (labels != 255).sum() and counts[list(UNSEEN)].any()

    found, right = metrics["zero_label"], np.diag(matrix)
    accuracy = {mode: found[mode]["overall_accuracy"] for mode in MODES}
    for group, ids in (("seen", list(SEEN)), ("unseen", list(UNSEEN))):
        expected = right[ids].sum() / counts[ids].sum()
        np.testing.assert_allclose(accuracy["generalised"][group], expected, rtol=1e-9)
    # Unseen classes alone are predicted in both, but only their own pixels count in the first.
    assert set(accuracy["zero_label"]) == {"unseen"}
    assert accuracy["zero_label"]["unseen"] == accuracy["vanilla"]["unseen"]
    assert accuracy["vanilla"]["unseen"] >= accuracy["generalised"]["unseen"]
    assert accuracy["vanilla"]["seen"] == 0
    assert not found["oracle_layout"]

    run(
        "vis.py",
        f"--checkpoint_dir={trained}",
        f"--dataset_dir={records}",
        f"--vis_logdir={tmp_path}",
        f"--vis_crop_size={SIZE}",
        "--also_save_raw_predictions",
    )
    assert (tmp_path / "index.html").exists()
    paths = (tmp_path / "raw_segmentation_results").glob("*.png")
    drawn = {path.stem: np.array(Image.open(path)) for path in paths}
    assert drawn.keys() == masks.keys()
    predictions = [drawn[image] for image in masks]
    np.testing.assert_array_equal(numpy_confusion(predictions, masks.values(), len(matrix)), matrix)


def test_a_teacher_without_last_layers_is_refused(stages, train, tmp_path):
    initial = f"--tf_initial_checkpoint={stages[1]('spnet')}"
    result = run(*train(tmp_path / "run", "strict", initial), check=False)
    assert_user_error(result, "--initialize_last_layer")


def test_rounds_that_do_not_fit_are_refused(train, tmp_path):
    result = run(*train(tmp_path / "run", "strict", "--rounds=5"), check=False)
    assert_user_error(result, "--rounds", "--training_number_of_steps=15")
