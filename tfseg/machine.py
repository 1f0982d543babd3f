"""What this machine has: memory, disk, processor features, NVIDIA GPUs. No TensorFlow here."""

import dataclasses
import glob
import os
import pathlib
import platform
import re
import shutil
import subprocess

_CGROUPS = pathlib.Path("/sys/fs/cgroup")
# The older form of control groups; its own folder for memory.
_LIMIT_V1 = _CGROUPS / "memory" / "memory.limit_in_bytes"


def memory_bytes() -> int:
    """Returns the bytes of memory that this process may use: the machine's, or a container's."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_limits(_own_group(), _CGROUPS), *_limit_in(_LIMIT_V1)])


def _own_group() -> str:
    """Returns the control group of this process, '/' where it is not known."""
    try:
        text = pathlib.Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        return "/"
    found = re.search(r"^0::(/.*)$", text, re.MULTILINE)
    return found[1] if found else "/"


def _limits(group: str, root: pathlib.Path) -> list[int]:
    """Returns the memory limits of a control group and of those above it, in bytes."""
    folder = root / group.lstrip("/")
    above = [parent for parent in folder.parents if parent.is_relative_to(root)]
    return [n for place in (folder, *above) for n in _limit_in(place / "memory.max")]


def _limit_in(path: pathlib.Path) -> list[int]:
    """Returns the number in a file, or nothing where there is none: 'max' is no limit."""
    try:
        return [int(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return []


def free_disk_bytes(folder: str) -> int:
    """Returns the free bytes, for this user, of the disk on which a folder lies."""
    return shutil.disk_usage(folder).free


@dataclasses.dataclass(frozen=True)
class Processor:
    """The processor.

    Attributes:
      name: as it calls itself, or its kind.
      cores: that this process may use.
      features: names of Linux, such as 'avx2'; None where they are not known.
    """

    name: str
    cores: int
    features: frozenset[str] | None


def processor(cpuinfo: str = "/proc/cpuinfo") -> Processor:
    """Returns the processor.

    Args:
      cpuinfo: Linux's description of it; other systems have none.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    try:
        text = pathlib.Path(cpuinfo).read_text(encoding="utf-8")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    features = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return Processor(
        name[1] if name else platform.machine(),
        cores,
        frozenset(features[1].split()) if features else None,
    )


@dataclasses.dataclass(frozen=True)
class Nvidia:
    """NVIDIA GPUs, whether or not TensorFlow can use them.

    Attributes:
      gpus: how many there are.
      driver: its version such as '550.54.15', None where it is not known.
      error: what nvidia-smi said where it failed; None: it did not.
    """

    gpus: int
    driver: str | None
    error: str | None


def nvidia() -> Nvidia | None:
    """Returns the NVIDIA GPUs of this machine, None where there are none."""
    files = len(glob.glob("/dev/nvidia[0-9]*"))
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return Nvidia(files, _driver_of_kernel(), None) if files else None
    if told.returncode:
        said = (told.stdout + told.stderr).strip() or f"exit code {told.returncode}"
        return Nvidia(files, _driver_of_kernel(), said)
    # Where there is none it says so in words.
    versions = re.findall(r"^\d+\.[\d.]+$", told.stdout, re.MULTILINE)
    return Nvidia(len(versions), versions[0], None) if versions else None


def _driver_of_kernel() -> str | None:
    try:
        text = pathlib.Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else None
