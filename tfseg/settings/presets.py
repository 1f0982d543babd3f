"""Settings that go together, chosen by --preset: defaults below whatever a user gives.

`light` trains on a laptop's CPU in minutes. Its values are those of the runs on the animal part of
VOC (experiments/voc12_animals256_*.flags), with crops of 257 pixels; experiments/README.md has
their results.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfseg.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preset:
    """Defaults by setting.

    Attributes:
      shared: for every method.
      of_method: more, or others, for one method.
      of_weakly: more, or others, for one method with --weakly.
      fixed: settings without which the others make no sense; a user may not give other values.
      excluded: values of settings that do not go with the fixed ones.
      optimizers: those for which the preset's learning rates are made; who gives another must give
        --base_learning_rate too.
    """

    shared: Mapping[str, Any]
    of_method: Mapping[str, Mapping[str, Any]]
    of_weakly: Mapping[str, Mapping[str, Any]]
    fixed: tuple[str, ...]
    excluded: Mapping[str, tuple[Any, ...]]
    optimizers: tuple[str, ...]


_LIGHT = Preset(
    shared={
        "model_variant": "efficientnet_lite0",
        "pretrained_weights": "imagenet",
        # Few images and small batches would spoil ImageNet's features and statistics.
        "freeze_backbone": True,
        "fine_tune_batch_norm": False,
        "output_stride": 16,
        "atrous_rates": (3, 6, 9),
        "decoder_output_stride": (4,),
        "aspp_convs_filters": 128,
        "decoder_filters": 128,
        "batch_norm_momentum": 0.97,
        "train_crop_size": (257, 257),
        "min_scale_factor": 0.75,
        "max_scale_factor": 1.25,
        "train_batch_size": 4,
        "training_number_of_steps": 1000,
        "base_learning_rate": 0.03,
        "num_clones": 1,
        "log_steps": 20,
        "save_summaries_images": False,
        # The backbone is frozen: the rate of the new layers is that of the supervised runs.
        "new_layers_learning_rate_multiplier": 1.0,
    },
    of_method={
        "pseudoseg": {
            # The published square of 100 pixels in crops of 513, and a gentler jitter, for frozen
            # features.
            "cutout_half_size": 25,
            "jitter_strength": 0.5,
            # The first pseudo labels are nearly all background and would weigh too much.
            "unlabeled_ramp_up_steps": 1000,
            "soft_pseudo_label": False,
            "pseudo_label_threshold": 0.45,
        },
        "learning_pseudo_labels": {
            "logits_learning_rate_multiplier": 1.0,
            # Without statistics of its own PseudoNet's head never leaves its first labels.
            "fine_tune_batch_norm": True,
            "base_learning_rate": 0.02,
            "pseudo_net_schedule": "decay",
            "slow_start_step": 50,
            "slow_start_learning_rate": 0.002,
            # The published exponent is made for IoUs near 0.9.
            "score_power": 4,
            "score_counts_void": False,
            "zero_iou_counts_as": "zero",
        },
        "slrnet": {
            "fine_tune_batch_norm": True,
            "augmentation": "resized_crop",
            "crop_area": (0.6, 1.0),
            "train_batch_size": 8,
            "learning_policy": "cosine",
            "constant_steps": 300,
            "pretrain_steps": 300,
            "base_learning_rate": 0.002,
            "weight_decay": 5e-4,
            "low_rank_gate": "mixture",
            "reestimate_batch_norm": 512,
            "new_layers_learning_rate_multiplier": 10.0,
        },
        # The loss is divided by the batch once more, as published.
        "zs3net": {"new_layers_learning_rate_multiplier": 10.0},
        # The published rate, threshold and labels are made for long trainings of whole networks.
        "unimatch": {
            "base_learning_rate": 0.06,
            "confidence_threshold": 0.8,
            "unlabeled_ramp_up_steps": 500,
            "distribution_alignment": True,
        },
        # Published with AdamW, whose rates are others by orders of magnitude.
        "fixmatch_v2": {"optimizer": "momentum", "weight_decay": 1e-4},
        "unimatch_v2": {"optimizer": "momentum", "weight_decay": 1e-4},
    },
    of_weakly={
        "pseudoseg": {
            "mask_absent_classes": "fused",
            # With true image-level labels soft labels are right early on.
            "unlabeled_ramp_up_steps": 300,
            "soft_pseudo_label": True,
            "pseudo_label_threshold": 0.0,
        },
    },
    fixed=("model_variant",),
    excluded={"head": ("dpt",)},
    # Adam has a rate of its own.
    optimizers=("momentum", "adam"),
)
PRESETS = {"light": _LIGHT}


def defaults(name: str | None, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the defaults of a preset by setting; {} where none is chosen.

    Args:
      name: of the preset, or None.
      method: the training method.
      given: what the user set, by name.

    Raises:
      UserError: a given setting contradicts the preset.
    """
    if name is None:
        return {}
    preset = PRESETS[name]
    _check_given(name, preset, given)
    found = {**preset.shared, **preset.of_method.get(method, {})}
    if given.get("weakly"):
        found |= preset.of_weakly.get(method, {})
    return found


def _check_given(name: str, preset: Preset, given: Mapping[str, Any]) -> None:
    """Refuses what a user gave beside a preset and what contradicts it.

    Raises:
      UserError: a setting does.
    """
    for setting in preset.fixed:
        value = preset.shared[setting]
        if given.get(setting, value) != value:
            raise UserError(
                f"--preset={name} is made for --{setting}={value}.",
                where=f"--{setting}",
                received=given[setting],
                accepted=value,
                fix=f"leave out --{setting}; or leave out --preset, and give the other settings",
            )
    for setting, values in preset.excluded.items():
        if given.get(setting) in values:
            raise UserError(
                f"--{setting}={given[setting]} does not go with --preset={name}.",
                where=f"--{setting}",
                received=given[setting],
                accepted="what goes with "
                + ", ".join(f"--{fixed}={preset.shared[fixed]}" for fixed in preset.fixed),
                fix=f"leave out --{setting}; or leave out --preset, and give the other settings",
            )
    optimizer = given.get("optimizer", preset.optimizers[0])
    if optimizer not in preset.optimizers and "base_learning_rate" not in given:
        raise UserError(
            f"The learning rate of --preset={name} is not made for --optimizer={optimizer}.",
            where="--optimizer",
            received=optimizer,
            accepted=", ".join(preset.optimizers),
            fix="add --base_learning_rate, or leave out --optimizer",
        )
