"""On which CPUs convolutions are kept apart from what follows them."""

import pytest
import tensorflow as tf

from tfseg.models import fusion

AVX2, AVX512 = "flags\t\t: fpu avx avx2 fma", "flags\t\t: fpu avx avx2 avx512f fma"


@pytest.fixture
def remapping():
    """Returns the option of the process; it is as before afterwards."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"remapping": True})
    fusion.has_few_fusions.cache_clear()
    yield lambda: tf.config.optimizer.get_experimental_options()["remapping"]
    fusion.has_few_fusions.cache_clear()
    tf.config.optimizer.set_experimental_options({"remapping": before.get("remapping", True)})


@pytest.mark.parametrize(
    "facts, fused", [(AVX2, False), (AVX512, True), ("arm", True), (None, True)]
)
def test_convolutions_are_fused_where_that_is_fast(facts, fused, remapping, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if facts is not None:
        path.write_text(facts)
    monkeypatch.setattr(fusion, "_CPU_FACTS", str(path))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    fusion.avoid_slow_fusions()
    assert remapping() == fused


def test_with_a_gpu_nothing_is_changed(remapping, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(AVX2)
    monkeypatch.setattr(fusion, "_CPU_FACTS", str(path))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    fusion.avoid_slow_fusions()
    assert remapping()
