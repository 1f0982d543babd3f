"""The model card: what a network is, what it was trained on, how good it is, what it is not for."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tfseg import files
from tfseg.data.specs import DATASET_FILE, read_dataset_json, split_entry
from tfseg.errors import UserError
from tfseg.runs.run import Run

_USE = {
    "savedmodel": """import tensorflow as tf

network = tf.saved_model.load("saved_model").signatures["serving_default"]
found = network(image=images)  # uint8 RGB [N, height, width, 3]
found["labels"], found["probabilities"]""",
    "tflite": """from ai_edge_litert.interpreter import Interpreter

network = Interpreter("model.tflite").get_signature_runner("serving_default")
found = network(image=image)  # uint8 RGB [1, height, width, 3] of the size below
found["labels"], found["probabilities"]""",
    "onnx": """import onnxruntime

network = onnxruntime.InferenceSession("model.onnx")
labels, probabilities = network.run(["labels", "probabilities"], {"image": images})""",
}


def text(run: Run, metadata: Mapping[str, Any], dataset_dir: str | None) -> str:
    """Returns the card as Markdown.

    Args:
      run: the run that was exported.
      metadata: content of metadata.json.
      dataset_dir: where its records lie now, for their checksums; None: where they were.
    """
    sections = (
        ("Use", _use(metadata)),
        ("Classes", _classes(metadata)),
        ("Training data", _data(run, dataset_dir)),
        ("Training", _training(run)),
        ("Metrics", _metrics(run, metadata)),
        ("Intended use and limits", _limits(run, metadata)),
    )
    title = f"# Semantic segmentation of {metadata['dataset']}: {metadata['model_variant']}"
    return "\n\n".join([title, *(f"## {name}\n\n{content}" for name, content in sections)]) + "\n"


def _use(metadata: Mapping[str, Any]) -> str:
    size = metadata["size"]
    sides = "any size" if size is None else f"{size[0]} x {size[1]} pixels (height x width)"
    return (
        f"```python\n{_USE[metadata['format']]}\n```\n\n"
        f"Images: uint8 RGB, {sides}. `labels`: uint8, the ids below, at the size of the image. "
        "`probabilities`: float32, one for each class. Scaling of the pixels and padding are part "
        "of the network. `metadata.json` has all this for programs; the file holds it too."
    )


def _classes(metadata: Mapping[str, Any]) -> str:
    rows = ["| id | class | colour |", "|---|---|---|"]
    rows += [
        f"| {i} | {name} | #{''.join(f'{part:02x}' for part in color)} |"
        for i, (name, color) in enumerate(zip(metadata["class_names"], metadata["palette"]))
    ]
    return "\n".join(rows)


def _data(run: Run, dataset_dir: str | None) -> str:
    data = run.record["data"]
    drawn = run.record.get("drawn_by", {})
    names = [name.partition("/")[0] for name in drawn.values()]
    names = names or [data["train_split"], data["train_split_cls"]]
    folders = [data["dataset_dir"], data.get("dataset_dir_cls"), dataset_dir]
    folders = [folder for folder in folders if folder]
    lines = [
        f"Records `{data['dataset_dir']}`. The splits that the run's settings name, by shard:",
        "",
    ]
    for name in dict.fromkeys(names):
        lines += [f"- `{name}`", *(f"  - {line}" for line in _shards(folders, name))]
    return "\n".join(lines)


def _shards(folders: Sequence[str], split: str) -> list[str]:
    """Returns a line for each shard of a split, as the first dataset.json that has it tells."""
    for folder in folders:
        try:
            content = read_dataset_json(folder)
            where = os.path.join(folder, DATASET_FILE)
            entry = content and split_entry(content, split, where=where)
        except UserError:
            continue
        if entry is not None:
            return [
                f"{shard['file']}: {shard.get('records', '?')} records, "
                f"SHA-256 {shard.get('sha256', 'not known')}"
                for shard in entry["shards"]
            ]
    return ["its checksums were not at hand when this was written"]


def _training(run: Run) -> str:
    record = run.record
    method = record["train"].get("method") or record["method"].get("method")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"Method `{method}`, {run.step} steps, seed {record['seed']}, revision "
        f"{record['git_revision'] or 'not known'}; {versions}. Command:\n\n"
        f"```\n{shlex.join(record['command'])}\n```"
    )


def _metrics(run: Run, metadata: Mapping[str, Any]) -> str:
    compared = metadata["comparison"]
    rows = [
        f"On {compared['images']} {compared['images_of']}:",
        "",
        "| | checkpoint | this file |",
        "|---|---|---|",
    ]
    rows += [f"| {name} | {before} | {after} |" for name, before, after in table(metadata)]
    found = _evaluation(run)
    if found is not None:
        classes = "; ".join(
            f"{name} {'-' if iou is None else f'{iou:.3f}'}"
            for name, iou in found["class_iou"].items()
        )
        rows += [
            "",
            f"`eval.py` measured the checkpoint on {found['num_images']} images: mIoU "
            f"{found['miou']:.4f} ({classes}). The table above may have another mIoU: there "
            + (
                ""
                if metadata["size"] is None
                else "images are resized to the size of the file, and "
            )
            + "fewer images may have been compared.",
        ]
    return "\n".join(rows)


def table(metadata: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (quantity, of the checkpoint, of the file) of a comparison, as text."""
    found = metadata["comparison"]
    rows = [
        ("size, MB", metadata["checkpoint_bytes"] / 1e6, metadata["bytes"] / 1e6, "{:.2f}"),
        (
            "milliseconds an image",
            found["checkpoint_milliseconds"],
            found["milliseconds"],
            "{:.1f}",
        ),
        ("equal pixels", 1.0, found["equal_pixels"], "{:.6f}"),
        ("largest difference of a probability", 0.0, found["largest_difference"], "{:.2g}"),
    ]
    if found["miou"] is not None:
        rows.append(("mIoU", found["checkpoint_miou"], found["miou"], "{:.4f}"))
    return [(name, form.format(a), form.format(b)) for name, a, b, form in rows]


def _evaluation(run: Run) -> Mapping[str, Any] | None:
    """Returns what eval.py wrote of this checkpoint beside it, where it did."""
    path = os.path.join(os.path.dirname(run.prefix), "eval", "metrics.json")
    form = {"checkpoint": str, "num_images": int, "miou": object, "class_iou": {str: object}}
    try:
        found = files.read_json(path, form, what="metrics.json", where=path, fix="evaluate again")
    except (OSError, UserError):
        return None
    is_of_it = os.path.basename(found["checkpoint"]) == os.path.basename(run.prefix)
    scores = (found["miou"], *found["class_iou"].values())
    are_scores = isinstance(found["miou"], float) and all(
        isinstance(score, float | None) for score in scores
    )
    return found if is_of_it and are_scores else None


def _limits(run: Run, metadata: Mapping[str, Any]) -> str:
    lines = [
        "For images like those it was trained on, of about their size and seen objects of about "
        f"their scale (training crops {_crop(run)}). Whoever uses it otherwise has to measure it "
        "there first.",
        "It answers one of its classes at every pixel, also where it sees none of them; "
        "`probabilities` are not calibrated.",
    ]
    resized = run.record["data"].get("min_resize_value")
    if resized is not None:
        lines.append(
            f"It was trained on images whose shorter side had been resized to {resized} pixels; "
            "resize images likewise."
        )
    if run.spec.seen_unseen is not None:
        unseen = ", ".join(run.spec.class_names[c] for c in run.spec.seen_unseen.unseen)
        lines.append(f"It never saw pixel labels of: {unseen}.")
    if metadata["comparison"]["miou"] is None:
        lines.append("No masks were at hand to measure this file; it was compared alone.")
    kept = metadata.get("float_layers")
    if kept:
        lines.append(
            f"{len(kept)} of its layers compute in float32, because in 8 bits they cost too much "
            "accuracy; `metadata.json` names them."
        )
    return "\n".join(f"- {line}" for line in lines)


def _crop(run: Run) -> str:
    height, width = run.record["data"]["train_crop_size"]
    return f"{height} x {width}"


def as_json(metadata: Mapping[str, Any]) -> str:
    """Returns the content of metadata.json."""
    return json.dumps(metadata, indent=1) + "\n"
