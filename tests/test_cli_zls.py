"""Zero-label runs through the programs: what config.json keeps, and bad input."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests.conftest import RECORD_SIZE
from tests.programs import assert_user_error, run
from tests.runs import NETWORK, evaluate
from tests.small_split import write_split
from tfseg.data.class_splits import ClassSplit
from tfseg.data.specs import DATASETS, DatasetSpec
from tfseg.errors import UserError
from tfseg.runs import classes
from tfseg.runs.classes import spec_of
from tfseg.runs.record import check_continues, write
from tfseg.settings.data import DataConfig
from tfseg.settings.methods import METHODS
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import make
from tfseg.settings.run import TrainConfig

DIGITS = [str(i) for i in range(10)]
SPLIT = {
    "seen": DIGITS[:7],
    "unseen": DIGITS[7:],
    "validation": ["6"],
    "background": "background",
}


def split_file(folder, **changes):
    path = folder / "split.json"
    path.write_text(json.dumps({**SPLIT, **changes}))
    return f"--class_split={path}"


def arguments(records, folder, *extra, method="spnet"):
    """Returns the command line of a run of two steps."""
    return (
        "train_zls.py",
        *NETWORK,
        f"--method={method}",
        "--aspp_convs_filters=16",
        "--log_steps=1",
        "--save_summaries_images=false",
        "--training_number_of_steps=2",
        "--train_split=train",
        f"--dataset_dir={records}",
        f"--train_logdir={folder / 'run'}",
        *extra,
    )


def projecting(records, *extra):
    return (
        f"--class_embeddings={records / 'class_embeddings.npz'}",
        *extra,
    )


# Refused before TensorFlow is loaded ------------------------------------------------------------


def test_a_class_split_is_required(records, tmp_path):
    result = run(*arguments(records, tmp_path), check=False)
    assert_user_error(result, "--class_split", "--method=spnet", '"unseen"')


@pytest.mark.parametrize(
    "flag", ["class_split=spnet_voc12", "seen_background", "class_embeddings=x"]
)
def test_other_methods_take_no_class_split(records, tmp_path, flag):
    extra = (f"--{flag}", *NETWORK, f"--dataset_dir={records}", f"--train_logdir={tmp_path}")
    result = run("train_sup.py", "--train_split=train", *extra, check=False)
    assert_user_error(result, f"--{flag.split('=')[0]}", "--method=supervised", "--method=spnet")


@pytest.mark.parametrize(
    "split, extra, words",
    [
        ({"unseen": ["6", "7", "8", "9"]}, (), ("both seen and unseen", "6")),
        ({"unseen": ["7", "8", "nine"]}, (), ("'nine' is not among", "data set digits")),
        ({"unseen": ["7", "8"]}, (), ("leaves out", "9")),
        ({"background": "0"}, (), ("no such background", "class 1 is '0'")),
        ({"validation": []}, ("--exclude_validation_classes",), ("no validation classes",)),
        ({}, ("--embedding_norm=none",), ("--embedding_norm needs",)),
        ({}, ("--class_embeddings=none.npz",), ("no such file", "none.npz")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_split_or_wrong_vectors(records, tmp_path, split, extra, words):
    command = arguments(records, tmp_path, split_file(tmp_path, **split), *extra)
    assert_user_error(run(*command, check=False), *words)


# Runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    """A run of SPNet; its split's file and its vectors are gone afterwards."""
    folder = tmp_path_factory.mktemp("zls")
    vectors = folder / "class_embeddings.npz"
    shutil.copy(records / vectors.name, vectors)
    result = run(*arguments(records, folder, split_file(folder), *projecting(folder)))
    (folder / "split.json").rename(folder / "gone.json")
    vectors.rename(folder / "gone.npz")
    return folder, result.stdout


def test_config_json_keeps_the_split_and_what_the_vectors_are(trained):
    folder, output = trained
    config = json.loads((folder / "run" / "config.json").read_text())
    split = ClassSplit.from_json(config["dataset"]["split"])
    assert split.seen == tuple(range(8)) and split.unseen == (8, 9, 10)
    assert (split.validation, split.background) == ((7,), 0)
    vectors = config["dataset"]["vectors"]
    assert vectors["width"] == config["model"]["projection_dim"] == 13
    assert len(vectors["sha256"]) == 64 and "values" not in vectors
    assert "8 seen classes; unseen: 7, 8, 9; background: is a seen class" in output


def test_evaluation_needs_neither_the_files_nor_the_flags(records, trained, tmp_path):
    folder, _ = trained
    metrics = evaluate(folder / "run", records, tmp_path)
    assert np.sum(metrics["confusion_matrix"]) > 0
    again = f"--class_split={folder / 'gone.json'}"
    same = evaluate(folder / "run", records, tmp_path / "again", again)
    assert same["confusion_matrix"] == metrics["confusion_matrix"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"unseen": ["8", "9"], "seen": DIGITS[:8]}, ("--class_split", "unseen: 7, 8, 9")),
        ({"background": None}, ("--class_split", "takes no part")),
    ],
    ids=["other classes", "other background"],
)
def test_another_split_is_another_run(records, trained, tmp_path, change, words):
    folder, _ = trained
    vectors = f"--class_embeddings={folder / 'gone.npz'}"
    split = split_file(tmp_path, **change)
    command = arguments(records, folder, split, vectors)
    assert_user_error(run(*command, check=False), "another run", *words)
    command = (
        "eval.py",
        f"--checkpoint_dir={folder / 'run'}",
        f"--dataset_dir={records}",
        f"--eval_logdir={tmp_path}",
        f"--eval_crop_size={RECORD_SIZE},{RECORD_SIZE}",
    )
    assert_user_error(run(*command, split, check=False), "contradicts the run", *words)


def test_other_vectors_are_another_run(records, trained):
    folder, _ = trained
    split = f"--class_split={folder / 'gone.json'}"
    vectors = f"--class_embeddings={folder / 'gone.npz'}"
    command = arguments(records, folder, split, vectors)
    result = run(*command, "--embedding_norm=none", check=False)
    assert_user_error(result, "another run", "--class_embeddings", "SHA-256")


@pytest.mark.parametrize(
    "extra, words",
    [
        ((), ("needs word vectors", "--class_embeddings", "--head=deeplab")),
        (("--head=deeplab", "--projection_dim=13"), ("--projection_dim", "--head=deeplab")),
        (("--drop_images=none.txt",), ("--drop_images", "cannot be read")),
    ],
    ids=lambda extra: " ".join(extra),
)
def test_what_the_network_or_the_data_cannot_do(records, tmp_path, extra, words):
    command = arguments(records, tmp_path, split_file(tmp_path), *extra)
    assert_user_error(run(*command, check=False), *words)


def test_vectors_that_the_head_does_not_need(records, tmp_path):
    extra = projecting(records, "--head=deeplab", split_file(tmp_path))
    result = run(*arguments(records, tmp_path, *extra), check=False)
    assert_user_error(result, "--class_embeddings would have no effect", "--head=projection")


def test_vectors_of_another_width_than_the_head(records, tmp_path):
    extra = projecting(records, "--projection_dim=12", split_file(tmp_path))
    result = run(*arguments(records, tmp_path, *extra), check=False)
    assert_user_error(result, "13 numbers", "12")


def test_left_out_images_are_counted_and_noted(records, tmp_path):
    (tmp_path / "drop.txt").write_text("train_00000\ntrain_00003\n")
    extra = (split_file(tmp_path), "--head=deeplab", f"--drop_images={tmp_path / 'drop.txt'}")
    output = run(*arguments(records, tmp_path, *extra)).stdout
    assert "2 of them left out" in output and "note: --drop_images" in output


@pytest.mark.parametrize(
    "method, words",
    [("strict", "--initialize_last_layer"), ("zs3net", "--last_layers_contain_logits_only")],
)
def test_a_second_stage_needs_a_first(records, tmp_path, method, words):
    vectors = f"--class_embeddings={records / 'class_embeddings.npz'}"
    command = arguments(records, tmp_path, vectors, split_file(tmp_path), method=method)
    assert_user_error(run(*command, check=False), "--tf_initial_checkpoint", "random", words)


# Functions of the programs ------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path):
    """Records of PASCAL VOC's classes without a dataset.json."""
    write_split(str(tmp_path), [np.zeros((9, 9, 3), np.uint8)], [np.zeros((9, 9), np.uint8)])
    return DataConfig(dataset_dir=str(tmp_path), class_split="spnet_voc12")


def record_of(config, spec):
    return {"dataset": spec.to_json(), "data": dataclasses.asdict(config)}


def test_the_split_of_a_run_holds(voc):
    hold_out = dataclasses.replace(voc, exclude_validation_classes=True)
    spec = spec_of(hold_out, ())
    assert spec.seen_unseen.unseen == (13, 14, 15) and spec.seen_unseen.held_out == (
        16,
        17,
        18,
        19,
        20,
    )
    record = record_of(hold_out, spec)
    # Flags that were not given are those of the run.
    assert spec_of(voc, {"class_split"}, record).seen_unseen.unseen == (13, 14, 15)
    plain = dataclasses.replace(voc, class_split=None)
    assert spec_of(plain, (), record).seen_unseen == spec.seen_unseen
    with pytest.raises(UserError, match="(?s)contradicts the run.*is a seen class.*takes no part"):
        spec_of(dataclasses.replace(plain, seen_background=True), {"seen_background"}, record)


def test_a_run_without_a_split_can_be_evaluated_with_one(voc):
    record = record_of(dataclasses.replace(voc, class_split=None), DATASETS["pascal_voc_seg"])
    assert spec_of(voc, {"class_split"}, record).seen_unseen.unseen == (16, 17, 18, 19, 20)
    assert (
        spec_of(dataclasses.replace(voc, class_split=None), {"class_split"}, record).seen_unseen
        is None
    )
    with pytest.raises(UserError, match="--exclude_validation_classes needs --class_split"):
        make(DataConfig, dataset_dir="x", exclude_validation_classes=True)


def test_classes_without_a_part_need_no_vector(voc, tmp_path):
    names = [name for name in DATASETS["pascal_voc_seg"].class_names if name != "background"]
    path = str(tmp_path / "vectors.npz")
    np.savez(path, names=np.array(names), vectors=np.eye(20, 4) + 1)
    with_vectors = dataclasses.replace(voc, class_embeddings=path)
    spec = spec_of(with_vectors, ())
    assert spec.vectors.width == 4 and not spec.vectors.values[0].any()
    with pytest.raises(UserError, match="'background'"):
        spec_of(dataclasses.replace(with_vectors, seen_background=True), ())
    record = record_of(with_vectors, spec)
    assert spec_of(voc, (), record).vectors is None
    assert spec_of(with_vectors, (), record).vectors.sha256 == spec.vectors.sha256
    np.savez(path, names=np.array(names), vectors=np.eye(20, 4) + 2)
    with pytest.raises(UserError, match="(?s)--class_embeddings contradicts.*SHA-256"):
        spec_of(with_vectors, (), record)


# What the run behind an initial checkpoint saw ----------------------------------------------------


def write_record(folder, config, spec=None, initial_run=None, **settings):
    """Writes the config.json of a run; returns its directory as a flag's value."""
    spec = spec or spec_of(config, ())
    settings = METHODS["zs3net"].settings(**settings)
    train = TrainConfig(method="zs3net", train_logdir=str(folder))
    folder.mkdir()
    sections = {"model": ModelConfig(), "data": config, "train": train, "method": settings}
    write(str(folder), sections, spec, {"initial_run": initial_run})
    return str(folder)


def started_from(logdir, spec):
    return classes.initial_run(TrainConfig(tf_initial_checkpoint=logdir), spec)


def test_how_masks_acted_is_inherited(voc, tmp_path):
    spec = spec_of(voc, ())
    dropping = dataclasses.replace(voc, drop_images="drop.txt")
    first = write_record(tmp_path / "first", dropping)
    told = started_from(first, spec)
    assert told["drop_images"] == ["drop.txt"] and not told["oracle_layout"]
    assert len(told["seen_classes"]) == 15 and "sheep" not in told["seen_classes"]
    second = write_record(tmp_path / "second", voc, initial_run=told, oracle_layout=True)
    third = write_record(tmp_path / "third", voc, initial_run=started_from(second, spec))
    for logdir, oracle in ((first, False), (second, True), (third, True)):
        found = classes.unseen_masks(logdir)
        assert found == {"oracle_layout": oracle, "drop_images": ["drop.txt"]}
    assert not any(classes.unseen_masks(str(tmp_path)).values())


def test_no_start_from_a_run_that_saw_unseen_classes(voc, tmp_path):
    spec = spec_of(voc, ())
    hold_out = dataclasses.replace(voc, exclude_validation_classes=True)
    first = write_record(tmp_path / "first", voc)
    with pytest.raises(UserError, match="(?s)--tf_initial_checkpoint.*received: horse, motorbike"):
        started_from(first, spec_of(hold_out, ()))
    without = write_record(tmp_path / "without", hold_out)
    assert "person" not in started_from(without, spec)["seen_classes"]
    # A run that forgot them started from one that knew them.
    again = write_record(tmp_path / "again", hold_out, initial_run=started_from(first, spec))
    with pytest.raises(UserError, match="received: .*person"):
        started_from(again, spec_of(hold_out, ()))
    # A run without a split saw everything, whatever its data set calls it.
    supervised = DatasetSpec("other", ("background", "Couch", "sky"))
    other = write_record(tmp_path / "other", voc, supervised)
    with pytest.raises(UserError, match="received: sofa\n"):
        started_from(other, spec)
    assert started_from(other, dataclasses.replace(spec, seen_unseen=None))["seen_classes"]


def test_of_other_checkpoints_nothing_is_known(voc, tmp_path):
    spec = DATASETS["pascal_voc_seg"]
    assert classes.initial_run(TrainConfig(), spec) is None
    assert started_from(str(tmp_path / "model.ckpt"), spec) is None
    (tmp_path / "config.json").write_text('{"architectures": ["Other"]}')
    assert started_from(str(tmp_path / "model.ckpt"), spec) is None


@pytest.mark.parametrize(
    "now, words",
    [
        ({"oracle_layout": True}, "--oracle_layout=True"),
        ({"generator_updates": "mean"}, "--generator_updates=mean"),
        ({"drop_images": "less.txt"}, "--drop_images=less.txt"),
    ],
    ids=lambda now: next(iter(now)) if isinstance(now, dict) else "",
)
def test_what_a_run_is_told_does_not_change(voc, tmp_path, now, words):
    dropping = dataclasses.replace(voc, drop_images="drop.txt")
    updates = {"generator_updates": "per_class"}
    logdir = write_record(tmp_path / "run", dropping, **updates)
    if "drop_images" in now:
        dropping, now = dataclasses.replace(voc, **now), {}
    sections = {
        "model": ModelConfig(),
        "data": dropping,
        "train": TrainConfig(method="zs3net"),
        "method": METHODS["zs3net"].settings(**{**updates, **now}),
    }
    with pytest.raises(UserError, match=f"another run(.|\n)*{words}"):
        check_continues(logdir, sections, spec_of(voc, ()))


def test_where_unseen_classes_are_no_secret_it_is_said(capsys):
    spec = DATASETS["coco_stuff"]
    split = ClassSplit("x", tuple(range(1, 182)), (0,))
    classes._note_leaks(DataConfig(dataset_dir="x"), dataclasses.replace(spec, seen_unseen=split))
    assert "no background" in capsys.readouterr().out
    with_background = dataclasses.replace(DATASETS["pascal_voc_seg"], seen_unseen=split)
    classes._note_leaks(DataConfig(dataset_dir="x"), with_background)
    assert capsys.readouterr().out == ""
