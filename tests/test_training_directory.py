"""Which folders a run may use, and whether its data is what it was."""

import json

import pytest

from tfseg.errors import UserError
from tfseg.runs import record, training_directory
from tfseg.settings.run import TrainConfig

STREAMS = {"labelled": {"split": "train", "images": 8, "masks": 8}}


@pytest.mark.parametrize("other", [False, True], ids=["read", "another"])
def test_a_folder_of_records_is_refused(tmp_path, other):
    records, run = tmp_path / "records", tmp_path / "run"
    records.mkdir()
    if other:
        (records / "dataset.json").write_text("{}")
    read = (str(tmp_path / "else") if other else f"{tmp_path}/run/../records", None)
    with pytest.raises(UserError, match="folder of records"):
        training_directory.check_holds_no_records(str(records), read)
    training_directory.check_holds_no_records(str(run), read)


@pytest.fixture
def emptied(tmp_path):
    """A folder with the config.json of a run of 10 steps."""
    content = {"train": {"training_number_of_steps": 10}}
    (tmp_path / record.NAME).write_text(json.dumps(content))
    return tmp_path


def test_a_run_that_never_had_a_checkpoint_may_begin_anew(emptied, tmp_path):
    training_directory.check_not_emptied(str(emptied))
    (emptied / "train_log.jsonl").write_text('{"step": 3}\n')
    training_directory.check_not_emptied(str(emptied))
    (tmp_path / record.NAME).unlink()
    (emptied / "train_log.jsonl").write_text('{"step": 10}\n')
    training_directory.check_not_emptied(str(emptied))


@pytest.mark.parametrize(
    "name, content",
    [
        ("checkpoint", 'model_checkpoint_path: "model.ckpt-5"\n'),
        ("train_log.jsonl", '{"step": 10}'),
    ],
)
def test_checkpoints_that_are_gone_are_missed(emptied, name, content):
    (emptied / name).write_text(content)
    with pytest.raises(UserError, match="(?s)checkpoints of this run are gone.*delete this one"):
        training_directory.check_not_emptied(str(emptied))


def written(folder, **changes):
    content = {"model": {}, "data": {}, "method": {}, "dataset": {"class_names": []}, "train": {}}
    (folder / record.NAME).write_text(json.dumps({**content, **changes}))
    return str(folder)


def test_data_that_changed_is_noticed(tmp_path):
    folder = written(tmp_path, streams=STREAMS, train={"label_weights": [0.5, 2.0]})
    assert record.changed_data(folder, STREAMS, (0.5, 2.0)) == []
    assert record.changed_data(folder, STREAMS, None) == []
    other = {"labelled": {"split": "train_2", "images": 8, "masks": 7}}
    (split,) = record.changed_data(folder, other, None)
    assert "split train, 8 images, 8 masks -> split train_2, 8 images, 7 masks" in split
    (weights,) = record.changed_data(folder, STREAMS, (0.6, 1.5))
    assert "[0.5, 2.0] -> [0.6, 1.5]" in weights
    assert record.changed_data(written(tmp_path), STREAMS, None) == []


def test_other_data_is_asked_for(capsys):
    changed = ["stream labelled: a -> b"]
    training_directory.check_same_data(TrainConfig(), [])
    with pytest.raises(UserError, match="(?s)other data.*a -> b.*--allow_changed_data"):
        training_directory.check_same_data(TrainConfig(), changed)
    training_directory.check_same_data(TrainConfig(allow_changed_data=True), changed)
    assert "note: goes on with other data: stream labelled: a -> b" in capsys.readouterr().out


def test_a_record_that_finds_no_space_is_named_and_leaves_nothing(tmp_path, full_disk):
    with pytest.raises(OSError) as raised:
        record.write_record(str(tmp_path), {"command": ["train_sup.py"] * 9})
    assert raised.value.filename == str(tmp_path / "config.json")
    assert not list(tmp_path.iterdir())
