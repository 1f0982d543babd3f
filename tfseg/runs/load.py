"""From a checkpoint to its network."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfseg.data.image_input import UNPADDED
from tfseg.errors import UserError
from tfseg.models import model_builder
from tfseg.runs import classes
from tfseg.runs import record as run_record
from tfseg.settings.data import DataConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.prediction import PredictionConfig
from tfseg.settings.reading import check_heeded, check_saved, flat, read
from tfseg.weights.checkpoint import find, reading


def network_of(
    data: DataConfig,
    given: Mapping[str, Any],
    checkpoint_dir: str,
    crop_flag: str,
    crop_size: Sequence[int] | None,
    config: Any,
    *,
    with_classifier: bool = False,
) -> tuple[Any, Any]:
    """Builds the network that a checkpoint needs.

    Args:
      data: where the records are, whose classes must be those of the run.
      given: what the user set, by name.
      checkpoint_dir: training directory or checkpoint prefix.
      crop_flag, crop_size: the flag that gives the size to which images are padded, and that size;
        None: there is none.
      config: the other settings that were given, for messages.
      with_classifier: the image-level classifier is needed.

    Returns:
      (network, description of the data).

    Raises:
      UserError: a flag contradicts the training run, or it had other classes than the data.
    """
    record = run_record.read(checkpoint_dir, of_run=True)
    where = run_record.path_of(checkpoint_dir)
    saved = None if record is None else run_record.settings_in(record, ModelConfig)
    network = read(ModelConfig, given, saved=saved, where=where)
    if record is not None:
        check_saved(DataConfig, record["data"], where=where)
        _check_widths(network, checkpoint_dir, where)
    else:
        print(
            f"note: there is no {where}: the network is as the flags say, and no run tells whether "
            "it was trained so",
            flush=True,
        )
    told = {} if record is None else run_record.settings_in(record, DataConfig)
    told = {name: told[name] for name in classes.RUN_FLAGS if name in told}
    check_heeded(given, [network, read(DataConfig, given, defaults=told), config])
    is_checked = crop_size is not None and tuple(crop_size) != UNPADDED
    if is_checked:
        check_sides(crop_flag, crop_size)
    spec = classes.spec_of(data, given, record)
    size = data.train_crop_size if crop_size is None else crop_size
    model = model_builder(network, spec, tuple(size))(with_classifier=with_classifier)
    if is_checked:
        check_crop_size(crop_flag, crop_size, model)
    return model, spec


# Settings of the resize before augmentation.
_RESIZING = ("min_resize_value", "max_resize_value", "resize_factor")


def resizing_of(record: Mapping[str, Any] | None) -> dict[str, int | None]:
    """Returns how a run resized its images before it augmented them, by setting; {} if it did not.

    Args:
      record: content of its config.json, or None.
    """
    told = {} if record is None else run_record.settings_in(record, DataConfig)
    if told.get("min_resize_value") is None:
        return {}
    return {name: told.get(name) for name in _RESIZING}


def seen_as_in_training(
    data: DataConfig, given: Mapping[str, Any], checkpoint_dir: str, config: PredictionConfig
) -> DataConfig:
    """Returns settings of the data with which images are resized as the run resized them.

    Args:
      data: as given.
      given: what the user set, by name; where that is how images are resized, it holds.
      checkpoint_dir: training directory or checkpoint prefix.
      config: other ways to resize them.

    Raises:
      UserError: config.json cannot be read.
    """
    record = run_record.read(checkpoint_dir, of_run=True)
    resizing = resizing_of(record)
    is_told = any(name in given for name in _RESIZING)
    if not resizing or is_told or config.max_side is not None or config.eval_resize != "none":
        return data
    told = ", ".join(f"--{name}={value}" for name, value in resizing.items() if value is not None)
    print(f"images are resized as in training: {told}", flush=True)
    return dataclasses.replace(data, **resizing)


def check_sides(name: str, crop_size: Sequence[int] | None) -> None:
    """Insists on two positive sides.

    Raises:
      UserError: something else.
    """
    if crop_size is None or len(crop_size) != 2 or min(crop_size) < 1:
        raise UserError(
            f"--{name} needs two positive sides.",
            where=f"--{name}",
            received=crop_size,
            accepted="height,width, for example 513,513",
        )


def check_crop_size(name: str, crop_size: Sequence[int], network: Any) -> None:
    """Insists on a crop size that the network takes.

    Args:
      name: of the flag.
      crop_size: height and width in pixels, at least 1.
      network: with `valid_size`.

    Raises:
      UserError: another size.
    """
    accepted = network.valid_size(*crop_size)
    if tuple(crop_size) != accepted:
        larger = network.valid_size(*(side + 1 for side in accepted))
        raise UserError(
            f"The network does not take crops of this --{name}.",
            where=f"--{name}",
            received=",".join(map(str, crop_size)),
            accepted=f"for example {accepted[0]},{accepted[1]} or {larger[0]},{larger[1]}",
        )


# Wider layers than these would take long to make before their shapes were found to be others.
_UNSUSPICIOUS_WIDTH = 4096


# Channels of MobileNetV2's last block.
_MOBILENET_WIDTH = 320


def _check_widths(config: ModelConfig, checkpoint_dir: str, where: str) -> None:
    """Compares the widths of a network that config.json asks for with its checkpoint.

    Raises:
      UserError: one is larger than anything in the checkpoint.
    """
    prefix = find.newest(checkpoint_dir)
    if prefix is None:
        return
    shapes = reading.open_reader(prefix).get_variable_to_shape_map().values()
    widest = max((max(shape, default=1) for shape in shapes), default=1)
    kernel = max((shape[0] for shape in shapes if len(shape) == 4), default=1)
    widths = {
        "aspp_convs_filters": config.aspp_convs_filters,
        "decoder_filters": config.decoder_filters,
        "divisible_by": config.divisible_by or 1,
        "depth_multiplier": config.depth_multiplier * _MOBILENET_WIDTH,
    }
    values = flat(config)
    for name in ("projection_dim", "dpt_features", "dpt_channels"):
        if values.get(name) is not None:
            widths[name] = max(np.ravel(values[name]), default=0)
    allowed = dict.fromkeys(widths, max(widest, _UNSUSPICIOUS_WIDTH))
    widths["logits_kernel_size"], allowed["logits_kernel_size"] = config.logits_kernel_size, kernel
    for name, width in widths.items():
        if width > allowed[name]:
            raise UserError(
                f"{run_record.NAME} asks for a larger network than the checkpoint holds.",
                where=f"{where}, model.{name}",
                received=values[name],
                accepted=f"the value of the run; the widest variable of {prefix} has {widest}, "
                f"the largest kernel {kernel}",
                fix="restore the file; or delete it and give the model flags on the command line",
            )
