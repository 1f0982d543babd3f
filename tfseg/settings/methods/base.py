"""What the settings of all methods have in common."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from tfseg.settings.option import Section

# What tells which classes have pixel labels, and what they mean.
OF_ZERO_LABEL = (
    "class_embeddings",
    "class_split",
    "embedding_norm",
    "exclude_validation_classes",
    "seen_background",
)


@dataclasses.dataclass(frozen=True)
class MethodSettings(Section):
    """A method without settings of its own."""

    GROUP: ClassVar[str] = "method"
    UNHEEDED: ClassVar[tuple[str, ...]] = OF_ZERO_LABEL
    # Defaults of the network, the data and the run that are others with this method.
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}
