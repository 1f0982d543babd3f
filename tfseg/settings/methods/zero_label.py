"""What the settings of the zero-label methods have in common."""

import dataclasses
from typing import ClassVar

from tfseg.settings.methods.base import MethodSettings
from tfseg.settings.option import option


@dataclasses.dataclass(frozen=True)
class ZeroLabelConfig(MethodSettings):
    """What the zero-label methods have in common."""

    UNHEEDED: ClassVar[tuple[str, ...]] = (
        "hard_example_mining_step",
        "last_layer_gradient_multiplier",
        "parameter_groups",
        "top_k_percent_pixels",
        "weakly",
    )

    new_layers_learning_rate_multiplier: float = option(
        10.0, "Factor on the learning rate of the layers on top of the backbone.", limits=(0, None)
    )
