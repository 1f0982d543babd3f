"""One TensorFlow process with two CPU devices, so that strategies can be tested anywhere."""

import gc
import os
import resource
import sys

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import pytest
import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops

from tests.programs import run
from tfseg.data.reading import deterministic_options

# Side of the scenes of `records`, pixels.
RECORD_SIZE = 33


def pytest_configure(config):
    _share_the_cores()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    _let_iterators_go_at_once()


def _share_the_cores():
    """Leaves each worker, and the programs that it starts, its share of the cores.

    Workers that all use all cores are in each other's way (some 7 % of the time on two).
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = max(1, (os.cpu_count() or 1) // workers)
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(share))


def _let_iterators_go_at_once():
    """Frees the iterators that tf.distribute makes for each device from their tuning thread.

    To let go of an iterator waits for that thread, which sleeps for up to a minute. The options of
    a dataset do not reach these iterators.
    """
    make = multi_device_iterator_ops._create_device_dataset
    multi_device_iterator_ops._create_device_dataset = lambda *arguments: make(
        *arguments
    ).with_options(deterministic_options())


def pytest_xdist_make_scheduler(config, log):
    """Gives each worker whole files, but test_golden by its files and test_methods by its regimes.

    Tests of one such part share what was built for the first of them.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file, _, name = nodeid.partition("::")
            if "[" not in name or not file.endswith(("test_golden.py", "test_methods.py")):
                return file
            part = name.partition("[")[2].partition(":")[0]
            # Files of one golden case, such as its inputs and results, share their first words.
            return f"{file}::{'_'.join(part.split('_')[:2])}"

    return Scheduling(config, log)


def pytest_collection_finish(session):
    """Spares every later garbage collection what the imports have made, and most of them.

    To trace a graph makes so many objects that Python looks through all of them again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _clean_up():
    """Frees a file's graphs, which hold each other in circles and add up to gigabytes.

    What is left (caches) is spared later collections, as the imports are.
    """
    yield
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session, exitstatus):
    session.config.exit_code = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Leaves without Python's own shutdown, as the programs do.

    Threads of abandoned input pipelines may be inside Python then, and wait for it for ever: once
    in a while a finished session hung. Workers of pytest-xdist are ended by their parent.
    """
    code = getattr(config, "exit_code", None)
    if code is not None and not hasattr(config, "workerinput"):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@pytest.fixture(scope="session")
def two_replicas():
    """A MirroredStrategy over two logical CPU devices.

    One for the whole session: TensorFlow numbers the collective operations of each strategy from
    the same start, and a second strategy would meet the first one's shapes under its numbers.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Records of a few small scenes of digits: 8 of train, 16 of train_aug, 7 of val."""
    folder = tmp_path_factory.mktemp("cli") / "records"
    run(
        "tfrecords_tools/build_digits.py",
        f"--output_dir={folder}",
        f"--image_size={RECORD_SIZE}",
        "--num_train=8",
        "--num_train_aug=16",
        "--num_val=7",
    )
    return folder


@pytest.fixture
def full_disk(capsys):  # capsys, as pytest's own capture is a file too
    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, most))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
