"""Which process of a cluster is the chief, and what is said of a worker that is gone."""

import socket

import pytest
import tensorflow as tf

from tfseg.errors import UserError
from tfseg.settings.run import TrainConfig
from tfseg.training import devices

# TensorFlow 2.20's text in worker 0 after worker 1 of three was killed: worker 2 passes it on.
LOST = """Graph execution error:

Detected at node allgather/CollectiveGatherV2 defined at (most recent call last):

Collective ops is aborted by: Collective ops is aborted by: recvmsg:Connection reset by peer
Additional GRPC error information from remote target /job:worker/replica:0/task:1 while calling \
/tensorflow.WorkerService/RecvBuf:
:UNKNOWN:Error received from peer  {grpc_message:"recvmsg:Connection reset by peer"}
The error could be from a previous operation. Restart your program to reset.
Additional GRPC error information from remote target /job:worker/replica:0/task:2 while calling \
/tensorflow.WorkerService/RecvBuf:
\t [[{{node allgather/CollectiveGatherV2}}]] [Op:__inference_largest_everywhere_715]"""


def resolver(task, job="worker", **jobs):
    cluster = tf.train.ClusterSpec(jobs or {"worker": ["a:1", "b:2", "c:3"]})
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        cluster, task_type=job, task_id=task
    )


def test_the_first_worker_that_the_error_names_is_the_lost_one():
    error = tf.errors.UnavailableError(None, None, LOST)
    message = str(devices.lost_worker(error, resolver(0)))
    assert "lost worker 1 (b:2)." in message and "this is worker 0 (a:1)" in message
    assert "Connection reset by peer" in message and "same command" in message
    assert "worker 2" not in message
    assert "lost worker 2 (c:3)." in str(devices.lost_worker(error, resolver(1)))


def test_a_worker_that_no_error_names_is_the_one_that_does_not_answer():
    with socket.create_server(("localhost", 0)) as here:
        with socket.create_server(("localhost", 0)) as gone:
            lost = f"localhost:{gone.getsockname()[1]}"
        hosts = ["own:1", f"localhost:{here.getsockname()[1]}", lost]
        error = tf.errors.DeadlineExceededError(None, None, "Barrier timed out")
        message = str(devices.lost_worker(error, resolver(0, worker=hosts)))
    assert f"lost worker 2 ({lost})." in message


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.InvalidArgumentError(None, None, "at /job:worker/replica:0/task:1"),
        tf.errors.ResourceExhaustedError(None, None, "out of memory"),
    ],
)
def test_other_errors_are_of_no_lost_worker(error):
    assert devices.lost_worker(error, resolver(0)) is None


class Strategy:
    def __init__(self, cluster_resolver):
        self.cluster_resolver = cluster_resolver


def test_one_process_of_a_cluster_is_the_chief():
    assert devices.is_chief(Strategy(None))
    assert [devices.is_chief(Strategy(resolver(i))) for i in range(3)] == [True, False, False]
    both = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}
    assert devices.is_chief(Strategy(resolver(0, "chief", **both)))
    assert not devices.is_chief(Strategy(resolver(0, "worker", **both)))


def test_a_lost_worker_ends_the_run_with_one_message(monkeypatch):
    error = tf.errors.UnavailableError(None, None, LOST)
    with pytest.raises(tf.errors.UnavailableError), devices.naming_lost_workers(Strategy(None)):
        raise error
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", Strategy)
    strategy = Strategy(resolver(0))
    with pytest.raises(UserError, match="lost worker 1"), devices.naming_lost_workers(strategy):
        raise error
    other = tf.errors.InvalidArgumentError(None, None, "shape")
    with pytest.raises(tf.errors.InvalidArgumentError), devices.naming_lost_workers(strategy):
        raise other


@pytest.mark.parametrize("flag", ["train_batch_size", "labelled_batch_size"])
def test_a_batch_that_replicas_and_parts_cannot_divide_names_its_flag(flag):
    config = TrainConfig(gradient_accumulation_steps=2)
    devices.check_batch(8, config, 2, flag=flag)
    with pytest.raises(UserError, match=f"(?s)--{flag}.*6 for 2 replica.*a multiple of 4"):
        devices.check_batch(6, config, 2, flag=flag)


@pytest.mark.parametrize(
    "text, received",
    [
        (None, "nothing"),
        ("", "nothing"),
        ("{", "{"),
        ('{"cluster": {"worker": ["a:1"]}}', '{"cluster"'),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "index 1 of 1",
        ),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "type 'ps'"),
        ('{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}', "no lists"),
        (
            '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
            "without a port",
        ),
    ],
)
def test_a_cluster_that_cannot_be_meant_is_told(text, received):
    with pytest.raises(UserError, match="TF_CONFIG") as error:
        devices.check_cluster(text)
    assert received in str(error.value).split("accepted")[0]


def test_a_cluster_of_two_hosts_is_accepted():
    devices.check_cluster(
        '{"cluster": {"worker": ["a:1", "[::1]:2"]}, "task": {"type": "worker", "index": "1"}}'
    )
