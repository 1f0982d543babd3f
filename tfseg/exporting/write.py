"""An export from the checkpoint to the finished folder, or to nothing at all."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from typing import Any

from tfseg import sharing, storage
from tfseg.errors import UserError, naming_file
from tfseg.exporting import card
from tfseg.exporting.comparison import compare, of_checkpoint
from tfseg.exporting.pictures import MadeUpPictures, RecordPictures
from tfseg.exporting.serving import Serving
from tfseg.exporting.task import Task
from tfseg.inference.zero_label import decision_among_visible
from tfseg.runs.load import resizing_of
from tfseg.runs.run import Run, load_run
from tfseg.settings.export import FORMATS, ExportConfig
from tfseg.settings.prediction import PredictionConfig

CARD, METADATA = "README.md", "metadata.json"


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes a checkpoint's network in another format, compared with the checkpoint.

    Args:
      config: what, as what, and where.

    Returns:
      The content of metadata.json.

    Raises:
      UserError: the format cannot hold the network, images are missing, the output folder is in
        use, or the file does not agree with the checkpoint. Nothing is written then.
    """
    settings, file_format = config.format_settings, FORMATS[config.format].load()
    file_format.check(settings)
    _check_output(config.output)
    run = load_run(config.checkpoint_dir, config.network)
    file_format.check(settings, run.network)
    size = None
    if file_format.TAKES_ONE_SIZE:
        size = tuple(settings.size or run.record["data"]["train_crop_size"])
    pictures, compared_on = _compared(run, config, size)
    limits = file_format.limits(settings)
    if limits.miou_loss is not None and not pictures.have_masks:
        raise _without_masks(config, compared_on)
    decision = decision_among_visible(PredictionConfig(), run.spec)
    checkpoint = of_checkpoint(run.network, decision)
    task = Task(
        Serving(run.network, decision),
        settings,
        _metadata(run, config, size),
        checkpoint,
        size,
        _calibration(run, config, size),
    )
    with _folder(config.output) as folder:
        path = os.path.join(folder, file_format.FILE)
        print(f"writing {file_format.FILE} of {run.prefix}", flush=True)
        told = file_format.write(task, path)
        print(f"comparing on {len(pictures)} {compared_on}", flush=True)
        found = compare(checkpoint, file_format.load(path), pictures, run.spec)
        metadata = {
            "file": file_format.FILE,
            **task.metadata,
            **told,
            "bytes": _bytes_of(path),
            "checkpoint_bytes": sum(4 * v.shape.num_elements() for v in run.network.variables),
            "comparison": {"images_of": compared_on, **dataclasses.asdict(found)},
        }
        _describe(metadata)
        found.check(limits, f"{config.format} file")
        for name, text in (
            (CARD, card.text(run, metadata, config.dataset_dir)),
            (METADATA, card.as_json(metadata)),
        ):
            target = os.path.join(folder, name)
            with naming_file(target), open(target, "w", encoding="utf-8") as file:
                file.write(text)
    print(f"written to {config.output}", flush=True)
    return metadata


def _check_output(output: str) -> None:
    """Insists on a folder that is new, or empty.

    Raises:
      UserError: something is there.
    """
    if os.path.lexists(output) and (not os.path.isdir(output) or os.listdir(output)):
        raise UserError(
            "The output folder is in use.",
            where="--output",
            received=output,
            accepted="a folder that does not exist, or is empty",
            fix="choose another --output, or delete that one",
        )


@contextlib.contextmanager
def _folder(output: str) -> Iterator[str]:
    """Yields a folder that takes the output's name at the end, or disappears."""
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    folder = sharing.temporary_path(output)
    os.mkdir(folder)
    try:
        yield folder
        # Takes the place of an empty folder, and of nothing else.
        os.rename(folder, output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _compared(
    run: Run, config: ExportConfig, size: tuple[int, int] | None
) -> tuple[RecordPictures | MadeUpPictures, str]:
    """Returns the images of the comparison, and what they are."""
    folder = config.dataset_dir or _records_of(run)
    if folder is None:
        return MadeUpPictures(size), "made-up images"
    pictures = RecordPictures(
        folder,
        config.compare_split,
        run.spec,
        config.compare_images,
        size,
        _filling(run),
    )
    return pictures, f"images of {config.compare_split} in {folder}"


def _records_of(run: Run) -> str | None:
    """Returns the folder of the run's records, where it is still there and within reach."""
    folder = run.record["data"].get("dataset_dir")
    with contextlib.suppress(UserError):
        if folder and storage.is_folder(folder):
            return folder
    return None


def _filling(run: Run) -> tuple[int, ...]:
    return tuple(round(value) for value in run.network.mean_pixel)


def _calibration(
    run: Run, config: ExportConfig, size: tuple[int, int] | None
) -> RecordPictures | None:
    settings = config.format_settings
    if getattr(settings, "tflite_quantization", "none") != "int8":
        return None
    # Its masks were asked for already, so there are records.
    return RecordPictures(
        config.dataset_dir or _records_of(run),
        settings.calibration_split,
        run.spec,
        settings.calibration_images,
        size,
        _filling(run),
    )


def _without_masks(config: ExportConfig, compared_on: str) -> UserError:
    quantization = config.format_settings.tflite_quantization
    return UserError(
        f"--tflite_quantization={quantization} needs images with masks, on which the file is "
        "measured"
        + (", and images that show the ranges of its features." if quantization == "int8" else "."),
        where="--dataset_dir, --compare_split",
        received=compared_on,
        accepted="a folder of records with a split that has masks",
        fix="add --dataset_dir=RECORDS (and --compare_split), or take --tflite_quantization=none",
    )


def _metadata(run: Run, config: ExportConfig, size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns what a file holds beside the network, in JSON's types."""
    spec = run.spec
    return {
        "format": config.format,
        "quantization": getattr(config.format_settings, "tflite_quantization", "none"),
        "size": size and list(size),
        "dataset": spec.name,
        "class_names": list(spec.class_names),
        "palette": spec.colors()[: spec.num_classes].tolist(),
        "ignore_label": spec.ignore_label,
        "has_background": spec.has_background,
        "model_variant": run.network.config.model_variant,
        "head": run.network.config.head,
        "step": run.step,
        # The file does not resize: whoever uses it does, where the run did.
        "resize_before": resizing_of(run.record),
    }


def _bytes_of(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def _describe(metadata: dict[str, Any]) -> None:
    rows = [("", "checkpoint", "export"), *card.table(metadata)]
    for name, before, after in rows:
        print(f"  {name:<36}{before:>12}{after:>12}", flush=True)
