"""Lines of a training log, as a person reads them."""

import json

import pytest

from tfseg.training.progress import Progress


def test_zero_has_no_sign(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    progress = Progress(total_steps=9, start_step=0, images_per_step=2, log_path=str(path))
    losses = {"segmentation": 1.5, "pseudo_segmentation": -0.0, "other": -1e-9}
    progress.report(1, losses, 0.002, {"share": -1e-7})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "step 1/9: loss 1.5000 (segmentation 1.5000, pseudo_segmentation 0.0000, other 0.0000), "
        "rate 0.002, "
    )
    assert lines[1] == "  monitors: share 0.000"
    assert "-0.0," not in path.read_text()
    assert json.loads(path.read_text())["other"] == -1e-9


def test_a_log_that_finds_no_space_is_named(tmp_path, full_disk):
    path = str(tmp_path / "train_log.jsonl")
    progress = Progress(total_steps=9, start_step=0, images_per_step=2, log_path=path)
    with pytest.raises(OSError) as raised:
        progress.report(1, {"segmentation": 1.5}, 0.002)
    assert raised.value.filename == path
