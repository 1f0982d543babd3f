"""Zero-label methods through the programs: stages, rounds, resuming, three modes, pictures."""

import json
import signal

import pytest

from tests.conftest import RECORD_SIZE
from tests.programs import assert_user_error, run, start
from tests.runs import NETWORK, assert_same_weights, end_with, evaluate, log_of, losses

pytestmark = pytest.mark.slow

DIGITS = [str(i) for i in range(10)]
SPLIT = {"seen": DIGITS[:7], "unseen": DIGITS[7:], "validation": ["6"], "background": "background"}
MODES = ("generalised", "zero_label", "vanilla")
SIZE = f"{RECORD_SIZE},{RECORD_SIZE}"


@pytest.fixture(scope="module")
def train(records, tmp_path_factory):
    """Returns a function that makes the command line of a run."""
    path = tmp_path_factory.mktemp("zls") / "split.json"
    path.write_text(json.dumps(SPLIT))

    def arguments(logdir, method, *extra, head="projection", steps=8):
        return (
            "train_zls.py",
            *NETWORK,
            f"--method={method}",
            f"--head={head}",
            "--decoder_output_stride=4",
            "--aspp_convs_filters=16",
            "--decoder_filters=16",
            "--batch_norm_momentum=0.5",
            "--log_steps=1",
            "--save_summaries_images=false",
            f"--training_number_of_steps={steps}",
            f"--class_split={path}",
            f"--class_embeddings={records / 'class_embeddings.npz'}",
            f"--dataset_dir={records}",
            f"--train_logdir={logdir}",
            *extra,
        )

    return arguments


def continuing(trained, *extra):
    return (f"--tf_initial_checkpoint={trained}", "--initialize_last_layer", *extra)


def on_features_of(trained, *extra):
    return (f"--tf_initial_checkpoint={trained}", "--last_layers_contain_logits_only", *extra)


@pytest.fixture(scope="module")
def spnet(train, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("spnet") / "run"
    run(*train(logdir, "spnet", steps=4))
    return logdir


@pytest.fixture(scope="module")
def step1(train, tmp_path_factory):
    """ZS3Net's first step: seen classes, an ordinary classifier."""
    logdir = tmp_path_factory.mktemp("step1") / "run"
    run(*train(logdir, "spnet", head="deeplab", steps=4))
    return logdir


@pytest.fixture(scope="module")
def commands(train, spnet, step1):
    """The second stages, by method: a function of the directory."""
    often = ("--save_interval_steps=3",)
    strict = ("--rounds=2", "--view_scales=1.5", *often)
    zs3net = ("--generator_samples=16", "--generator_hidden=8", *often)
    return {
        "strict": lambda logdir: train(logdir, "strict", *continuing(spnet, *strict)),
        "zs3net": lambda logdir: train(
            logdir, "zs3net", *on_features_of(step1, *zs3net), head="deeplab"
        ),
    }


@pytest.fixture(scope="module")
def trained(commands, tmp_path_factory):
    """Runs of both second stages."""
    folder = tmp_path_factory.mktemp("trained")
    for method, command in commands.items():
        run(*command(folder / method))
    return folder


@pytest.mark.parametrize("method, after", [("strict", 5), ("zs3net", 4)])
def test_a_killed_run_reaches_the_same_weights(commands, trained, tmp_path, method, after):
    logdir = tmp_path / "run"
    process = start(*commands[method](logdir), log=tmp_path / "log")
    end_with(signal.SIGKILL, process, logdir, after=after)
    run(*commands[method](logdir))
    assert_same_weights(trained / method, logdir)
    assert losses(trained / method) == losses(logdir)


def test_every_round_starts_at_the_full_rate(trained):
    rates = [entry["learning_rate"] for entry in log_of(trained / "strict")]
    assert len(rates) == 8 and rates[:4] == rates[4:] and rates[0] > rates[1] > rates[2]
    assert "pseudo_label_precision" in log_of(trained / "strict")[-1]["monitors"]


def test_three_modes(records, trained, tmp_path):
    for method in ("strict", "zs3net"):
        metrics = evaluate(trained / method, records, tmp_path / method)
        found = metrics["zero_label"]
        assert set(MODES) <= set(found)
        assert not found["oracle_layout"]


def test_pictures(records, trained, tmp_path):
    run(
        "vis.py",
        f"--checkpoint_dir={trained / 'strict'}",
        f"--dataset_dir={records}",
        f"--vis_logdir={tmp_path}",
        f"--vis_crop_size={SIZE}",
        "--also_save_raw_predictions",
    )
    assert (tmp_path / "index.html").exists()
    assert len(list((tmp_path / "raw_segmentation_results").glob("*.png"))) == 7


def test_zs5_starts_from_zs3net(train, trained, tmp_path):
    share = ("--generator_classes=all", "--view_scales=", "--mirror_views=false")
    share += ("--pseudo_label_share=25", "--disagreeing=ignore")
    extra = continuing(trained / "zs3net", *share)
    run(*train(tmp_path / "run", "strict", *extra, head="deeplab", steps=2))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"]["view_scales"] is None and not config["method"]["mirror_views"]
    assert len(log_of(tmp_path / "run")) == 2


def test_a_teacher_without_last_layers_is_refused(train, spnet, tmp_path):
    result = run(
        *train(tmp_path / "run", "strict", f"--tf_initial_checkpoint={spnet}"), check=False
    )
    assert_user_error(result, "--initialize_last_layer")


def test_rounds_that_do_not_fit_are_refused(train, tmp_path):
    result = run(*train(tmp_path / "run", "strict", "--rounds=3"), check=False)
    assert_user_error(result, "--rounds", "--training_number_of_steps=9")
