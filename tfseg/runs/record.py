"""config.json: what a run was, so that eval and vis need not be told and a reader can repeat it."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tfseg import files
from tfseg.data import class_names
from tfseg.data.atomic_writing import write_atomically
from tfseg.errors import UserError
from tfseg.settings.option import FREELY, NEVER
from tfseg.settings.reading import flat, may_differ, names_of, options_of
from tfseg.settings.run import TrainConfig

NAME = "config.json"

_ID = range(256)
_NATURAL = range(1 << 63)
# What other programs read of it. A foreign file of this name may have none of these keys.
_FORM = {
    "model?": {},
    "data?": {"drop_images?": (str, None)},
    "train?": {},
    "method?": {"oracle_layout?": bool},
    "dataset?": {
        "class_names": [str],
        "split?": (
            {
                "name": str,
                "seen": [_ID],
                "unseen": [_ID],
                "validation?": [_ID],
                "background?": (_ID, None),
                "held_out?": [_ID],
            },
            None,
        ),
        "vectors?": ({"width": int, "sha256": str}, None),
    },
    "images?": {"median_sides?": [range(1, 1 << 31)]},
    "streams?": {str: {"split": str, "images": _NATURAL, "masks": _NATURAL}},
    "initial_run?": (
        {"seen_classes?": [str], "oracle_layout?": bool, "drop_images?": [str]},
        None,
    ),
}
_SECTIONS = ("model", "data", "train", "method", "dataset")

# Number of the file's form; files without one are of the form before it, in which the settings of
# every head and augmentation stood in it.
FORMAT = 2

_PACKAGES = (
    "tensorflow",
    "tf-keras",
    "tf-models-official",
    "keras-cv",
    "numpy",
    "pillow",
    # Its versions differ in the pixels of warps.
    "opencv-python-headless",
    "tfseg",
)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    """Returns the revision of the source tree, marked where it has changes; None outside git."""
    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip()


def write(folder: str, sections: Mapping[str, Any], spec: Any, extra: Mapping[str, Any]) -> None:
    """Writes `<folder>/config.json` atomically.

    Args:
      folder: the training directory.
      sections: settings by the name of their section: model, data, train, method.
      spec: the data set's classes (an object with `to_json`).
      extra: further facts: the number of replicas, as 'initial_run' what `told` says of the run
        from whose checkpoint this one started, as 'drawn_by' how the streams were drawn, as
        'images' the medians of the shorter and the longer sides of the training images, and as
        'streams' the split of each stream, its number of images and of masks.
    """
    record = {
        "format": FORMAT,
        "command": sys.argv,
        "seed": sections["train"].seed,
        "git_revision": _git_revision(),
        "versions": _versions(),
        **{name: _values(name, section) for name, section in sections.items()},
        "dataset": spec.to_json(),
        **extra,
    }
    write_record(folder, record)


def _values(name: str, section: Any) -> dict[str, Any]:
    """Returns what of a section's settings stands under its name."""
    values = flat(section)
    if name == "train":
        values = {field.name: values[field.name] for field in options_of(type(section))}
    return values


def median_sides(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the medians of the shorter and longer sides of a run's images, None if not known."""
    sides = record.get("images", {}).get("median_sides", ())
    return tuple(sides) if len(sides) == 2 else None


def settings_in(record: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Returns the settings of one section class in a record, wherever they stand there.

    Args:
      record: content of a config.json.
      cls: a settings class.
    """
    values = {
        name: value
        for section in reversed(_SECTIONS[:-1])
        for name, value in record.get(section, {}).items()
    }
    return {name: values[name] for name in names_of(cls) if name in values}


def write_record(folder: str, record: Mapping[str, Any]) -> None:
    """Writes `<folder>/config.json` atomically."""
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(os.path.join(folder, NAME), text.encode())


def check_continues(folder: str, sections: Mapping[str, Any], spec: Any) -> list[str]:
    """Compares a run with the one whose checkpoints its training directory holds.

    Args:
      folder: the training directory; it has checkpoints.
      sections, spec: as for `write`.

    Returns:
      Settings that differ and may, each as "--flag: before -> now".

    Raises:
      UserError: the other run had another network, method, regime, or other classes, class split,
        word vectors or knowledge of labels.
    """
    record = read(folder, of_run=True)
    if record is None:
        return []
    changed = []
    for name, section in sections.items():
        may_change, saved = may_differ(section), settings_in(record, type(section))
        # As they look once written: tuples become lists.
        now = json.loads(json.dumps(_values(name, section)))
        for flag, value in now.items():
            before = saved.get(flag, value)
            if before == value or may_change[flag] == FREELY:
                continue
            if may_change[flag] == NEVER:
                # A preset of another version may have set it: the user did not.
                way_on = f"give --{flag} as it was to continue that run, "
                raise _another_run(folder, f"--{flag}={value}", f"--{flag}={before}", way_on)
            changed.append(f"--{flag}: {before} -> {value}")
    before, classes = record["dataset"]["class_names"], list(spec.class_names)
    if list(before) != classes:
        raise _another_run(
            folder, class_names.compared(classes, before), class_names.compared(before, classes)
        )
    now = zero_label_facts(spec.to_json())
    for flag, fact in zero_label_facts(record["dataset"]).items():
        if fact != now[flag]:
            raise _another_run(folder, f"--{flag}: {now[flag]}", f"--{flag}: {fact}")
    return changed


def changed_data(
    folder: str, streams: Mapping[str, Any], balanced: Sequence[float] | None
) -> list[str]:
    """Says where the data of a run is not what it was when the run was last started.

    Args:
      folder: the training directory; it has checkpoints.
      streams: split, images and masks of each stream.
      balanced: --label_weights=balanced in numbers; None: not asked for.

    Returns:
      Differences, each as "what: before -> now"; of older runs less is known.
    """
    record = read(folder, of_run=True) or {}
    before = record.get("streams", streams)
    changed = [
        f"stream {name}: {_told_stream(before[name])} -> {_told_stream(streams[name])}"
        for name in streams
        if name in before and before[name] != streams[name]
    ]
    weights = settings_in(record, TrainConfig).get("label_weights")
    if balanced is not None and weights is not None and list(weights) != list(balanced):
        changed.append(f"--label_weights=balanced: {weights} -> {list(balanced)}")
    return changed


def _told_stream(facts: Mapping[str, Any]) -> str:
    return f"split {facts['split']}, {facts['images']} images, {facts['masks']} masks"


def zero_label_facts(dataset: Mapping[str, Any]) -> dict[str, str | None]:
    """Says which class split and which word vectors a run has, wherever they came from.

    Args:
      dataset: the description of its data set, as in config.json.

    Returns:
      By flag, None where the run has none. Two runs with the same are told the same.
    """
    names, split, vectors = dataset["class_names"], dataset.get("split"), dataset.get("vectors")
    facts: dict[str, str | None] = {"class_split": None, "class_embeddings": None}
    if split is not None:
        background = split.get("background")
        parts = {
            "unseen": ", ".join(names[c] for c in split["unseen"]),
            "held out": ", ".join(names[c] for c in split.get("held_out", ())),
            "background": "takes no part" if background is None else "is a seen class",
        }
        said = "; ".join(f"{name}: {value}" for name, value in parts.items() if value)
        facts["class_split"] = f"{len(split['seen'])} seen classes; {said}"
    if vectors is not None:
        facts["class_embeddings"] = f"{vectors['width']} numbers a class, SHA-256 " + str(
            vectors["sha256"]
        )
    return facts


def told(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Says what a run, and those before it from whose checkpoints it started, were told of labels.

    Args:
      record: content of a run's config.json, or None.

    Returns:
      'seen_classes': names of the classes of which labels were seen. 'oracle_layout': whether masks
      of unseen classes acted. 'drop_images': the lists of images that were left out. None without
      a record.
    """
    if record is None or "dataset" not in record:
        return None
    before = record.get("initial_run") or {}
    dataset, method = record["dataset"], record.get("method", {})
    names, split = dataset["class_names"], dataset.get("split")
    seen = names if split is None else [names[c] for c in split["seen"]]
    dropped = record.get("data", {}).get("drop_images")
    return {
        "seen_classes": sorted({*seen, *before.get("seen_classes", ())}),
        "oracle_layout": bool(method.get("oracle_layout") or before.get("oracle_layout")),
        "drop_images": [*before.get("drop_images", ()), *([dropped] if dropped else [])],
    }


def _another_run(folder: str, received: str, accepted: str, way_on: str = "") -> UserError:
    return UserError(
        "The training directory holds another run.",
        where=f"--train_logdir={folder}",
        received=received,
        accepted=f"{accepted} (from its {NAME})",
        fix=f"{way_on}choose another --train_logdir, or delete that one to start anew",
    )


def path_of(path: str) -> str:
    """Returns where config.json lies for a training directory or a checkpoint prefix inside one."""
    return os.path.join(path if os.path.isdir(path) else os.path.dirname(path), NAME)


def read(path: str, *, of_run: bool = False) -> dict[str, Any] | None:
    """Returns the record of the run that made a checkpoint, or None where there is none.

    Args:
      path: a training directory or a checkpoint prefix inside one.
      of_run: the checkpoint is one of ours, so that the record must be whole.

    Raises:
      UserError: the file is there and is not a record, or a damaged one; see also
        `files.read_json`.
    """
    name = path_of(path)
    fix = "delete it and give the model flags on the command line"
    form = _FORM
    if of_run:
        form = {
            key.removesuffix("?") if key[:-1] in _SECTIONS else key: _FORM[key] for key in _FORM
        }
    try:
        record = files.read_json(name, form, what=NAME, where=name, fix=fix)
    except FileNotFoundError:
        return None
    dataset = record.get("dataset")
    split = dataset and dataset.get("split")
    if split:
        ids = [
            c for key in ("seen", "unseen", "validation", "held_out") for c in split.get(key, ())
        ]
        strange = [c for c in ids if c >= len(dataset["class_names"])]
        if strange:
            raise UserError(
                f"{NAME} has another structure.",
                where=name,
                received=f"class id {strange[0]} in dataset.split",
                accepted=f"0 to {len(dataset['class_names']) - 1}, the classes of dataset",
                fix=fix,
            )
    return record
