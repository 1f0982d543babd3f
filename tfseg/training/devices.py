"""Devices: which `tf.distribute` strategy a run gets, how its batch is divided, who is lost."""

import contextlib
import glob
import json
import os
import re
import socket
import warnings
from collections.abc import Iterator

import tensorflow as tf

from tfseg.errors import UserError
from tfseg.settings.run import TrainConfig

_INSTALL_CUDA = (
    "install the CUDA libraries beside TensorFlow (pip install 'tensorflow[and-cuda]') and check "
    "the driver with nvidia-smi; tfseg doctor says which of the two is missing; or run on the CPU: "
    "--clone_on_cpu"
)


def _gpus(config: TrainConfig) -> list[str]:
    if config.clone_on_cpu:
        return []
    # Listing logical devices would start TensorFlow, after which the CPU cannot be split.
    count = len(tf.config.list_physical_devices("GPU"))
    names = [f"GPU:{i}" for i in range(count)]
    if not names and glob.glob("/dev/nvidia[0-9]*"):
        warnings.warn(
            "This machine has an NVIDIA GPU that TensorFlow cannot use; running on the CPU. To use "
            f"it, {_INSTALL_CUDA}.",
            stacklevel=2,
        )
    return names


def _virtual_cpus(count: int) -> list[str]:
    """Splits the CPU into logical devices; they must be made before TensorFlow starts."""
    physical = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            physical, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError:
        pass  # Already started (in a test session): use the devices that there are.
    return [device.name for device in tf.config.list_logical_devices("CPU")][:count]


def _mirrored(config: TrainConfig, gpus: list[str]) -> tf.distribute.Strategy:
    devices = gpus
    if not devices:
        if not config.clone_on_cpu:
            raise UserError(
                "--strategy=mirrored needs GPUs and TensorFlow sees none.",
                where="--strategy",
                received="mirrored",
                accepted="auto, one_device, or mirrored with --clone_on_cpu",
                fix=_INSTALL_CUDA,
            )
        devices = _virtual_cpus(min(config.num_clones, os.cpu_count() or 1))
    return tf.distribute.MirroredStrategy(devices[: config.num_clones])


def _tpu(config: TrainConfig) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=config.tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"No TPU could be reached: {error}",
            where="--tpu",
            received=config.tpu or "(local)",
            fix="give the TPU's name with --tpu, or choose another --strategy",
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def check_cluster(text: str | None) -> None:
    """Checks the cluster in the environment variable TF_CONFIG, before TensorFlow reads it.

    Args:
      text: its content, None where it is not set.

    Raises:
      UserError: it is not JSON of a cluster and of one of its tasks.
    """
    wrong = None
    try:
        told = json.loads(text or "")
        cluster, task = told["cluster"], told["task"]
        kind, index = task["type"], int(task["index"])
        addresses = [address for listed in cluster.values() for address in listed]
        if kind not in cluster:
            wrong = f"the task's type '{kind}', which the cluster does not have"
        elif not 0 <= index < len(cluster[kind]):
            wrong = f"index {index} of {len(cluster[kind])} tasks '{kind}'"
        elif not all(isinstance(listed, list) for listed in cluster.values()):
            wrong = "a cluster whose tasks are no lists of addresses"
        elif absent := [a for a in addresses if not re.fullmatch(r".+:\d+", str(a))]:
            wrong = f"the address '{absent[0]}' without a port"
    except (ValueError, LookupError, TypeError, AttributeError):
        wrong = text or "nothing"
    if wrong is not None:
        raise UserError(
            "--strategy=multi_worker needs the cluster in the environment variable TF_CONFIG.",
            where="TF_CONFIG",
            received=wrong,
            accepted='{"cluster": {"worker": ["host1:port", "host2:port"]}, '
            '"task": {"type": "worker", "index": 0}}',
        )


def make_strategy(config: TrainConfig, *, tell_clones: bool = True) -> tf.distribute.Strategy:
    """Makes the distribution strategy of a run.

    Args:
      config: `strategy`, `num_clones`, `clone_on_cpu`, `tpu`, `train_batch_size` are used.
      tell_clones: say so where other than `num_clones` replicas are used.

    Returns:
      The strategy; 'auto' takes every GPU up to `num_clones`, else one device.

    Raises:
      UserError: devices are asked for that are not there, or the batch cannot be divided.
    """
    if config.num_clones < 1:
        raise UserError(
            "--num_clones must be at least 1.", where="--num_clones", received=config.num_clones
        )
    if config.strategy == "multi_worker":
        check_cluster(os.environ.get("TF_CONFIG"))
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif config.strategy == "tpu":
        strategy = _tpu(config)
    else:
        gpus = _gpus(config)
        wanted = min(len(gpus), config.num_clones)
        if config.strategy == "mirrored" or (config.strategy == "auto" and wanted > 1):
            strategy = _mirrored(config, gpus)
        else:
            strategy = tf.distribute.OneDeviceStrategy(gpus[0] if gpus else "/cpu:0")
    replicas = strategy.num_replicas_in_sync
    check_batch(config.train_batch_size, config, replicas, flag="train_batch_size")
    if tell_clones and replicas != config.num_clones and config.train_batch_size > replicas:
        print(
            f"note: {replicas} replica(s) are used, not --num_clones={config.num_clones}; the "
            f"global batch stays {config.train_batch_size}. Batch-norm statistics are per "
            f"replica, so each is taken over {config.train_batch_size // replicas} images "
            f"instead of {max(1, config.train_batch_size // config.num_clones)}.",
            flush=True,
        )
    return strategy


def make_evaluation_strategy(replicas: int) -> tf.distribute.Strategy:
    """Makes the strategy of an evaluation: that many GPUs, or parts of the CPU where there is none.

    Args:
      replicas: wanted; with GPUs no more than there are.
    """
    gpus = _gpus(TrainConfig())
    if replicas <= 1:
        return tf.distribute.OneDeviceStrategy(gpus[0] if gpus else "/cpu:0")
    return tf.distribute.MirroredStrategy(gpus[:replicas] or _virtual_cpus(replicas))


def make_prediction_strategy(name: str, clones: int) -> tf.distribute.Strategy:
    """Makes the strategy of a prediction on plain images.

    Args:
      name: 'auto', every GPU, else one CPU device; 'one_device'; or 'mirrored'.
      clones: replicas of 'mirrored'.
    """
    if name == "auto":
        return make_evaluation_strategy(len(_gpus(TrainConfig())))
    return make_evaluation_strategy(clones if name == "mirrored" else 1)


def check_batch(size: int, config: TrainConfig, replicas: int, *, flag: str) -> None:
    """Insists on a batch that can be divided among replicas and accumulation steps.

    Args:
      size: of the whole batch.
      config: gives the accumulation steps.
      replicas: in all.
      flag: that sets the size.

    Raises:
      UserError: it cannot.
    """
    parts = replicas * config.gradient_accumulation_steps
    if size < 1 or size % parts:
        raise UserError(
            "The batch cannot be divided among the replicas"
            + (" and accumulation steps." if config.gradient_accumulation_steps > 1 else "."),
            where=f"--{flag}",
            received=f"{size} for {replicas} replica(s) x "
            f"{config.gradient_accumulation_steps} accumulation step(s)",
            accepted=f"a multiple of {parts}, for example {max(1, round(size / parts)) * parts}",
        )


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process keeps checkpoints and logs: one of the cluster does.

    It is the task of type 'chief' where the cluster has one, as training operators make them, and
    else worker 0.
    """
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    chiefs = {"chief", "master"} & set(resolver.cluster_spec().jobs)
    return resolver.task_type in (chiefs or {"worker"}) and resolver.task_id in (0, None)


@contextlib.contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns TensorFlow's error where another worker of the cluster is gone into one message.

    Raises:
      UserError: a worker is lost; other errors pass.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            told = lost_worker(error, strategy.cluster_resolver)
            if told is not None:
                raise told from None
        raise


# Of errors that say that another process does not answer.
_NO_ANSWER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
_TASK = re.compile(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)")


def lost_worker(
    error: tf.errors.OpError, resolver: tf.distribute.cluster_resolver.ClusterResolver
) -> UserError | None:
    """Returns the user's view of an error that tells of a lost worker, or None for other errors.

    Args:
      error: TensorFlow's.
      resolver: of the cluster and this process's task in it.
    """
    cluster = resolver.cluster_spec().as_dict()
    own = (resolver.task_type, resolver.task_id)
    lost = _lost_workers(error, cluster, own)
    if not lost:
        return None
    return UserError(
        f"The run has lost {' and '.join(lost)}.",
        where=f"TF_CONFIG; this is {_task_name(cluster, own)}",
        received=_cause(error),
        fix="see the output of the lost worker for why it ended, or look for a kill for want of "
        "memory; then run the same command on all workers again: training resumes from the last "
        "checkpoint",
    )


def _lost_workers(
    error: tf.errors.OpError, cluster: dict[str, list[str]], own: tuple[str, int]
) -> list[str]:
    """Names the workers without which an error leaves the cluster; empty where it is no such error.

    Args:
      error: TensorFlow's.
      cluster: addresses of each job.
      own: (job, task) of this process.
    """
    if not isinstance(error, _NO_ANSWER) and "Collective ops is aborted" not in error.message:
        return []
    # The first one named was lost; those that follow passed its error on, and end of it.
    for job, task in _TASK.findall(error.message):
        if (job, int(task)) != own and int(task) < len(cluster.get(job, ())):
            return [_task_name(cluster, (job, int(task)))]
    others = [(job, i) for job, hosts in cluster.items() for i in range(len(hosts))]
    return [
        _task_name(cluster, (job, i))
        for job, i in others
        if (job, i) != own and not _answers(cluster[job][i])
    ]


def _task_name(cluster: dict[str, list[str]], task: tuple[str, int]) -> str:
    job, number = task
    return f"{job} {number} ({cluster[job][number]})"


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def _cause(error: tf.errors.OpError) -> str:
    """Returns the line of TensorFlow's text that says what happened."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    cause = next((line for line in lines if "aborted by" in line), lines[-1] if lines else "")
    return cause.replace("Collective ops is aborted by: ", "")


def describe(strategy: tf.distribute.Strategy) -> str:
    """Returns one line on the devices in use."""
    workers = strategy.extended.worker_devices
    kinds = sorted({device.split(":")[-2].upper() for device in workers})
    return (
        f"devices: {strategy.num_replicas_in_sync} replica(s) on {'/'.join(kinds)} "
        f"({type(strategy).__name__})"
    )
