"""Temporary names and locks of folders that several processes share."""

import errno
import fcntl
import json
import os
import signal
import threading

import pytest

from tests.programs import start_holder
from tfseg import sharing
from tfseg.errors import UserError
from tfseg.runs.training_directory import sole_run


def test_no_two_names_are_equal_and_a_worker_has_its_task_in_it(monkeypatch):
    names = {sharing.temporary_name("x") for _ in range(100)}
    assert len(names) == 100 and all(n.startswith(".writing-x.") for n in names)
    task = {"cluster": {}, "task": {"type": "worker", "index": 3}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    assert sharing.temporary_name("x").startswith(".writing-worker3-x.")
    for broken in ("{", "[]", '{"task": 3}', '{"task": {"type": "../", "index": 1}}'):
        monkeypatch.setenv("TF_CONFIG", broken)
        assert "/" not in sharing.temporary_name("x")


def test_a_lock_keeps_others_out_and_tells_them_who_holds_it(tmp_path):
    path = str(tmp_path / "lock")
    with sharing.locked(path, note="process 7"):
        with pytest.raises(sharing.Busy) as busy, sharing.locked(path, wait=False):
            pass
        assert busy.value.holder == "process 7"
        with pytest.raises(sharing.Busy), sharing.locked(path, shared=True, wait=False):
            pass
    assert os.listdir(tmp_path) == []
    with sharing.locked(path, shared=True), sharing.locked(path, shared=True, wait=False):
        with pytest.raises(sharing.Busy), sharing.locked(path, wait=False):
            pass
    assert os.listdir(tmp_path) == []


def test_who_waited_for_a_lock_holds_it_alone(tmp_path):
    """The first holder removes the file for which the second one waits."""
    path, order, waits = str(tmp_path / "lock"), [], threading.Event()

    def second():
        waits.set()
        with sharing.locked(path):
            order.append("second")
            with pytest.raises(sharing.Busy), sharing.locked(path, wait=False):
                pass

    with sharing.locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        waits.wait()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and os.listdir(tmp_path) == []


def test_a_killed_holder_blocks_nobody(tmp_path):
    path = str(tmp_path / "lock")
    process = start_holder(path, "process 7")
    with pytest.raises(sharing.Busy), sharing.locked(path, wait=False):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.path.exists(path)
    with sharing.locked(path, wait=False) as no_locks:
        assert no_locks is None


def test_a_second_run_in_one_training_directory_is_refused(tmp_path):
    with sole_run(str(tmp_path), True):
        # Of the same cluster.
        with sole_run(str(tmp_path), False):
            pass
        with pytest.raises(UserError, match=f"(?s)Another.*process {os.getpid()} on .*next step"):
            with sole_run(str(tmp_path), True):
                pass
    with sole_run(str(tmp_path), True):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_on_a_disk_without_locks_the_run_says_so_and_goes_on(tmp_path, monkeypatch, capsys, number):
    def no_locks(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with sole_run(str(tmp_path), True):
        pass
    out = capsys.readouterr().out
    assert "without locks" in out and os.strerror(number) in out
