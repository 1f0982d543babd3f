"""Whether this machine can train, and how fast: the program `tfseg doctor`."""

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Mapping
from typing import Any

from tfseg import __version__, command_line, machine
from tfseg.errors import UserError
from tfseg.settings import programs

_GIB = 2**30
# Distribution, and why it may be missing.
_PACKAGES = {
    "tensorflow": "nothing works without it",
    "tf-keras": "Keras 2; nothing works without it",
    "tf-models-official": "Model Garden; some backbones and optimisers need it",
    "keras-cv": "--augmentation=randaugment needs it",
    "tensorflow-addons": "the optimisers of the extra [addons] need it, and TensorFlow 2.15",
}
# The oldest driver for each CUDA version: NVIDIA's minor version compatibility.
_OLDEST_DRIVER = {"11": (450, 80), "12": (525, 60), "13": (580, 0)}
# Steps that are timed, after one that is not.
_TIMED_STEPS = 3


def program(about: str) -> None:
    """Says whether this machine can train, and how fast.

    tfseg doctor

    It prints versions, the processor's features, memory, disk space and devices. It runs a small
    training step on each device. Where TensorFlow cannot use a GPU it says why, and what to do.
    Exit code: 0 if training works, 2 if not, with the reason.
    """
    command_line.run(main, about=about)


def main(argv: list[str]) -> None:
    """Prints the report.

    Raises:
      UserError: training does not work here.
    """
    print(f"tfseg {__version__}, Python {platform.python_version()}, {platform.platform()}")
    versions = _versions()
    for name, reason in _PACKAGES.items():
        print(f"  {name:<20} {versions[name] or f'not installed ({reason})'}")
    check_versions(versions)
    processor = machine.processor()
    print(f"\nprocessor: {processor.name}, {processor.cores} cores")
    for line in describe_features(processor.features):
        print(f"  {line}")
    check_features(processor.features)
    free = machine.free_disk_bytes(".") / _GIB
    print(f"memory: {machine.memory_bytes() / _GIB:.1f} GiB for this process")
    print(f"disk: {free:.1f} GiB free in {os.getcwd()}", flush=True)
    devices = _devices(versions)
    settings = programs.training(
        {"preset": "light", "dataset_dir": ".", "train_logdir": ".", "base_learning_rate": 1e-4},
        default_method="supervised",
    )
    batch, side = settings.train.train_batch_size, settings.data.train_crop_size[0]
    print(f"\none training step of --preset=light ({batch} crops of {side} pixels):", flush=True)
    for device in devices:
        try:
            seconds = step_seconds(settings, device)
        except Exception as error:
            raise UserError(
                f"Training does not work on {device}.",
                received=f"{type(error).__name__}: {error}",
                fix="train on the CPU: --clone_on_cpu" if "GPU" in device else None,
            ) from error
        steps = settings.train.training_number_of_steps
        print(
            f"  {device:<8} {seconds:.3f} s; {steps} steps take about {seconds * steps / 60:.1f} "
            "minutes",
            flush=True,
        )
    print("\ntraining works", flush=True)


# Versions -----------------------------------------------------------------------------------------


def _versions() -> dict[str, str | None]:
    """Returns the installed versions, None for what is not installed."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    if versions["tensorflow"] is None:
        # The same package under other names: for processors alone, nightly, of macOS.
        found = importlib.metadata.packages_distributions().get("tensorflow", ())
        versions["tensorflow"] = importlib.metadata.version(found[0]) if found else None
    return versions


def check_versions(versions: Mapping[str, str | None]) -> None:
    """Insists on a TensorFlow and a Keras 2 that fit together.

    Args:
      versions: by distribution; None: not installed.

    Raises:
      UserError: one is missing, or they do not fit.
    """
    tensorflow, keras = versions["tensorflow"], versions["tf-keras"]
    if tensorflow is None:
        raise UserError(
            "TensorFlow is not installed.",
            fix="pip install 'tensorflow==2.20.*' 'tf-keras==2.20.*'",
        )
    minor = ".".join(tensorflow.split(".")[:2])
    if keras is None or ".".join(keras.split(".")[:2]) != minor:
        raise UserError(
            "Keras 2 does not fit TensorFlow.",
            received=f"tensorflow {tensorflow}, tf-keras {keras or 'not installed'}",
            accepted=f"tf-keras {minor}",
            fix=f"pip install 'tf-keras=={minor}.*'",
        )


# The processor ------------------------------------------------------------------------------------


def describe_features(features: frozenset[str] | None) -> list[str]:
    """Says which of the features that matter a processor has, and what follows.

    Args:
      features: Linux's names; None: not known.
    """
    if features is None:
        return ["its features are not known on this system"]
    if not features & {"avx", "sse2"}:
        return []  # Not an x86 processor.
    has_avx512, has_amx = "avx512f" in features, "amx_tile" in features
    found = [("AVX2", "avx2" in features), ("AVX-512", has_avx512), ("AMX", has_amx)]
    lines = ["; ".join(f"{name}: {'yes' if is_there else 'no'}" for name, is_there in found)]
    if features & {"amx_bf16", "avx512_bf16"}:
        lines.append("--mixed_precision=bfloat16 has instructions of its own here: it is faster")
    else:
        lines.append("no instructions for bfloat16: --mixed_precision=bfloat16 is slower here")
    if "avx2" not in features:
        lines.append("without AVX2 training is several times slower than on a newer processor")
    return lines


def check_features(features: frozenset[str] | None) -> None:
    """Insists on what TensorFlow's packages are compiled for.

    Raises:
      UserError: the processor has no AVX; importing TensorFlow would end the process.
    """
    if features is not None and "sse2" in features and "avx" not in features:
        raise UserError(
            "TensorFlow's packages need a processor with AVX.",
            fix="use another machine; a virtual machine may be told to pass the feature on",
        )


# Devices ------------------------------------------------------------------------------------------


def _devices(versions: Mapping[str, str | None]) -> list[str]:
    """Prints the GPUs and what keeps TensorFlow from using them; returns the devices to try.

    Raises:
      UserError: TensorFlow cannot be imported.
    """
    try:
        import tensorflow as tf
    except Exception as error:
        raise UserError(
            "TensorFlow cannot be imported.",
            received=f"{type(error).__name__}: {error}",
            fix=f"pip install --force-reinstall 'tensorflow=={versions['tensorflow']}'",
        ) from error

    gpus = tf.config.list_physical_devices("GPU")
    for number, gpu in enumerate(gpus):
        details = tf.config.experimental.get_device_details(gpu)
        capability = ".".join(map(str, details.get("compute_capability", ())))
        print(f"GPU:{number}: {details.get('device_name', 'unknown')}, compute {capability}")
    nvidia = machine.nvidia()
    if not gpus and nvidia is None:
        print("GPU: none")
    if not gpus and nvidia is not None:
        reason, fix = gpu_trouble(
            nvidia,
            build=tf.sysconfig.get_build_info(),
            version=versions["tensorflow"],
            missing=missing_cuda_packages(),
            visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        )
        print(f"warning: {nvidia.gpus} NVIDIA GPU(s), and TensorFlow can use none: {reason}.")
        print(f"  to do: {fix}", flush=True)
    return [*(f"GPU:{number}" for number in range(len(gpus))), "CPU:0"]


def gpu_trouble(
    nvidia: machine.Nvidia,
    *,
    build: Mapping[str, Any],
    version: str,
    missing: list[str],
    visible: str | None,
) -> tuple[str, str]:
    """Says why TensorFlow sees none of the machine's GPUs, and what to do.

    Args:
      nvidia: the GPUs and their driver.
      build: TensorFlow's build information.
      version: TensorFlow's.
      missing: packages with CUDA's libraries that are not installed.
      visible: the environment variable CUDA_VISIBLE_DEVICES.

    Returns:
      (reason, what to do).
    """
    cuda = str(build.get("cuda_version", ""))
    if not build.get("is_cuda_build"):
        return (
            "this TensorFlow was built without CUDA",
            f"pip uninstall tensorflow-cpu; pip install 'tensorflow[and-cuda]=={version}'",
        )
    if visible is not None and visible.strip() in ("", "-1"):
        return (
            f"the environment variable CUDA_VISIBLE_DEVICES='{visible}' hides them",
            "unset CUDA_VISIBLE_DEVICES",
        )
    if nvidia.error:
        return (
            f"nvidia-smi fails: {' '.join(nvidia.error.split())[:200]}",
            "install the driver anew, or reboot after a change of the driver; in a container, "
            "start it with the GPUs (docker run --gpus all)",
        )
    oldest = _OLDEST_DRIVER.get(cuda.split(".")[0])
    driver = tuple(int(n) for n in re.findall(r"\d+", nvidia.driver or "")[:2])
    if oldest and driver and driver < oldest:
        return (
            f"the driver {nvidia.driver} is too old for CUDA {cuda}",
            f"install a driver from version {oldest[0]}.{oldest[1]} on",
        )
    install = f"pip install 'tensorflow[and-cuda]=={version}'"
    if missing:
        return f"CUDA's libraries are not installed ({', '.join(missing[:3])} ...)", install
    return (
        "its libraries are installed and cannot be loaded; another CUDA may stand before them",
        "unset LD_LIBRARY_PATH and try again; TF_CPP_MIN_LOG_LEVEL=0 tfseg doctor shows what "
        f"TensorFlow says; or {install} in a new environment",
    )


def missing_cuda_packages() -> list[str]:
    """Returns the packages of TensorFlow's extra [and-cuda] that are not installed."""
    try:
        needed = importlib.metadata.requires("tensorflow") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    names = [re.match(r"[\w.-]+", line)[0] for line in needed if "and-cuda" in line]
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    return [name for name in names if name.lower() not in installed]


# A training step ----------------------------------------------------------------------------------


def step_seconds(settings: programs.Training, device: str) -> float:
    """Trains a new network for some steps on random images; returns the seconds of a step.

    Args:
      settings: of a supervised run; nothing is read or written.
      device: 'GPU:0', 'CPU:0', ...
    """
    import tensorflow as tf

    from tfseg.data.specs import DATASETS
    from tfseg.models import model_builder
    from tfseg.settings.methods import METHODS
    from tfseg.training.trainer import Trainer

    train, size = settings.train, settings.data.train_crop_size
    spec = DATASETS["pascal_voc_seg"]
    strategy = tf.distribute.OneDeviceStrategy(device)
    with strategy.scope():
        method = METHODS[train.method].load()(
            build_model=model_builder(settings.network, spec, size, seed=train.seed),
            spec=spec,
            config=train,
            settings=train.method_settings,
        )

    def batch(number: tf.Tensor) -> dict[str, dict[str, tf.Tensor]]:
        seed = tf.stack([number, 0])
        shape = [train.train_batch_size, *size]
        image = tf.random.stateless_uniform([*shape, 3], seed, 0.0, 255.0)
        label = tf.random.stateless_uniform(shape, seed, 0, spec.num_classes, tf.int32)
        return {"labelled": {"image": image, "label": label}}

    batches = tf.data.Dataset.range(1 + _TIMED_STEPS).map(batch)
    trainer = Trainer(
        method=method,
        strategy=strategy,
        config=train,
        iterator=iter(strategy.experimental_distribute_dataset(batches)),
        mixed_precision=settings.network.mixed_precision,
    )
    trainer.train(1)  # Traces the step.
    started = time.perf_counter()
    trainer.train(_TIMED_STEPS)
    return (time.perf_counter() - started) / _TIMED_STEPS
