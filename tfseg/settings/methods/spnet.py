"""Settings of SPNet."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from tfseg.settings.methods.zero_label import ZeroLabelConfig
from tfseg.settings.option import option


@dataclasses.dataclass(frozen=True)
class SPNetConfig(ZeroLabelConfig):
    """SPNet: training on the seen classes alone (STRICT specification 3, ZS3 specification 3)."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {"head": "projection"}

    training_rules: str = option(
        "spnet",
        "How weights are trained. spnet: scale and shift of the backbone's batch norm are "
        "constants; biases of new layers learn twice as fast as their kernels and do not decay. "
        "zs3, for ZS3Net's first step: all weights learn and decay alike, and the mean loss is "
        "divided by the batch size.",
        choices=("spnet", "zs3"),
    )
