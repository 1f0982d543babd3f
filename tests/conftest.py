"""One TensorFlow process with two CPU devices, so that strategies can be tested anywhere."""

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import pytest
import tensorflow as tf


def pytest_configure(config):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(scope="session")
def two_replicas():
    """A MirroredStrategy over two logical CPU devices.

    One for the whole session: TensorFlow numbers the collective operations of each strategy from
    the same start, and a second strategy would meet the first one's shapes under its numbers.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
