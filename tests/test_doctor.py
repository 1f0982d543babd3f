"""What `tfseg doctor` finds out about a machine."""

import pathlib

import pytest

from tests.toy import ToyBackbone
from tfseg import doctor, machine
from tfseg.errors import UserError
from tfseg.models import BACKBONES
from tfseg.settings import programs

CUDA = {"is_cuda_build": True, "cuda_version": "12.5.1"}


def trouble(*, nvidia=None, build=CUDA, missing=(), visible=None):
    nvidia = nvidia or machine.Nvidia(1, "550.54.15", None)
    found = doctor.gpu_trouble(
        nvidia, build=build, version="2.20.0", missing=list(missing), visible=visible
    )
    return ": ".join(found)


@pytest.mark.parametrize(
    "facts, words",
    [
        ({"missing": ["nvidia-cudnn-cu12"]}, ("nvidia-cudnn-cu12", "[and-cuda]==2.20.0'")),
        ({"build": {"is_cuda_build": False}}, ("without CUDA", "[and-cuda]==2.20.0'")),
        ({"visible": "-1"}, ("CUDA_VISIBLE_DEVICES", "unset")),
        ({"nvidia": machine.Nvidia(1, None, "Driver/library mismatch")}, ("mismatch", "driver")),
        ({"nvidia": machine.Nvidia(1, "470.57.02", None)}, ("470.57.02", "525.60")),
        ({}, ("cannot be loaded", "LD_LIBRARY_PATH")),
    ],
    ids=["missing", "no_cuda", "hidden", "driver_fails", "driver_old", "other"],
)
def test_why_tensorflow_sees_no_gpu(facts, words):
    assert all(word in trouble(**facts) for word in words)


@pytest.mark.parametrize(
    "tensorflow, keras", [(None, None), ("2.20.0", None), ("2.20.0", "2.15.1")]
)
def test_versions_that_do_not_work(tensorflow, keras):
    with pytest.raises(UserError, match="pip install"):
        doctor.check_versions({"tensorflow": tensorflow, "tf-keras": keras})
    doctor.check_versions({"tensorflow": "2.20.0", "tf-keras": "2.20.1"})


@pytest.mark.parametrize(
    "features, words",
    [
        ("sse2 avx avx2 avx512f amx_tile amx_bf16", ("AMX: yes", "it is faster")),
        ("sse2 avx avx2", ("AVX2: yes; AVX-512: no", "is slower here")),
        ("sse2 avx", ("AVX2: no", "without AVX2")),
        (None, ("not known",)),
    ],
)
def test_what_a_processor_has(features, words):
    features = features and frozenset(features.split())
    text = " ".join(doctor.describe_features(features))
    assert all(word in text for word in words)
    doctor.check_features(features)


def test_a_processor_on_which_tensorflow_would_crash():
    with pytest.raises(UserError, match="AVX"):
        doctor.check_features(frozenset({"sse2"}))
    doctor.check_features(frozenset({"asimd"}))


def test_the_processor_is_read_from_the_system(tmp_path):
    (tmp_path / "cpuinfo").write_text("model name\t: Some CPU\nflags\t\t: sse2 avx avx2\n")
    found = machine.processor(str(tmp_path / "cpuinfo"))
    assert (found.name, found.features) == ("Some CPU", {"sse2", "avx", "avx2"})
    assert found.cores >= 1 and machine.processor(str(tmp_path / "none")).features is None


def test_the_memory_of_a_container_is_its_limit(tmp_path):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (tmp_path / "outer" / "memory.max").write_text("4096\n")
    assert machine._limits("/outer/inner", tmp_path) == [4096]
    assert machine._limits("/gone", pathlib.Path("/nowhere")) == []
    assert 0 < machine.memory_bytes() < 1 << 60


def test_a_training_step_is_run_and_timed(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)
    given = {
        "model_variant": "toy",
        "aspp_convs_filters": 4,
        "train_crop_size": (17, 17),
        "train_batch_size": 1,
        "dataset_dir": ".",
        "train_logdir": ".",
    }
    settings = programs.training(given, default_method="supervised")
    assert 0 < doctor.step_seconds(settings, "CPU:0") < 60


@pytest.mark.parametrize(
    "says, code, expected",
    [
        ("550.54.15\n550.54.15", 0, machine.Nvidia(2, "550.54.15", None)),
        ("No devices were found", 0, None),
        ("couldn't communicate with the driver", 9, "couldn't communicate with the driver"),
    ],
    ids=["two", "none", "fails"],
)
def test_nvidia_smi_is_asked(tmp_path, monkeypatch, says, code, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "{says}"\nexit {code}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = machine.nvidia()
    assert (found.error if code else found) == expected
