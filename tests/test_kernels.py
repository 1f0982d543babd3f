"""Which of TensorFlow's kernels are used on which machine."""

import pytest
import tensorflow as tf

from tfseg.models import kernels

AVX2 = frozenset({"fpu", "avx", "avx2", "fma"})
AVX512 = AVX2 | {"avx512f"}
AMX = AVX512 | {"amx_bf16"}


@pytest.fixture
def on_machine(monkeypatch):
    """Returns a function that makes the process see another machine."""

    def see(features, gpus=()):
        monkeypatch.setattr(kernels, "_cpu_features", lambda: frozenset(features))
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(gpus))

    return see


@pytest.fixture
def remapping():
    """Returns the option of the process; it is as before afterwards."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"remapping": True})
    yield lambda: tf.config.optimizer.get_experimental_options()["remapping"]
    tf.config.optimizer.set_experimental_options({"remapping": before.get("remapping", True)})


@pytest.mark.parametrize("features, fused", [(AVX2, False), (AVX512, True), ((), True)])
def test_convolutions_are_fused_where_that_is_fast(features, fused, remapping, on_machine):
    on_machine(features)
    kernels.avoid_slow_fusions()
    assert remapping() == fused


def test_with_a_gpu_nothing_is_changed(remapping, on_machine):
    on_machine(AVX2, gpus=["GPU:0"])
    kernels.avoid_slow_fusions()
    assert remapping()


@pytest.mark.parametrize(
    "features, gpus, sides, expected",
    [
        (AMX, (), (65, 65), tf.bfloat16),
        (AMX, (), (33, 33), tf.float32),
        (AMX, (), (None, 65), tf.float32),
        (AVX512, (), (65, 65), tf.float32),
        (AVX512 | {"avx512_bf16"}, (), (65, 65), tf.bfloat16),
        (AVX2, ("GPU:0",), (33, 33), tf.bfloat16),
    ],
)
def test_batch_norm_stays_in_bfloat16_where_that_is_fast(
    features, gpus, sides, expected, on_machine
):
    on_machine(features, gpus)
    assert kernels.batch_norm_type(tf.bfloat16, *sides) == expected


@pytest.mark.parametrize("compute_type", [tf.float32, tf.float16])
def test_batch_norm_of_other_types_is_left_alone(compute_type, on_machine):
    on_machine(AMX)
    assert kernels.batch_norm_type(compute_type, 33, 33) == compute_type


@pytest.mark.parametrize("features", [AVX2, AVX512])
def test_fusing_lasts_as_long_as_the_calls(features, remapping, on_machine):
    on_machine(features)
    kernels.avoid_slow_fusions()
    before = remapping()
    with kernels.fusing():
        assert remapping()
    assert remapping() == before


@pytest.mark.parametrize("features", [AVX2, AVX512])
def test_both_forms_of_relu6_are_equal(features, on_machine):
    on_machine(features)
    x = tf.constant([-1.0, 0.0, 0.5, 6.0, 7.0])
    assert kernels.relu6_apart(x).numpy().tolist() == tf.nn.relu6(x).numpy().tolist()
