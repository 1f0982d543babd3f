"""The sections of each program, read from what was given."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfseg.settings import presets
from tfseg.settings.data import DataConfig
from tfseg.settings.export import ExportConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.prediction import EvalConfig, ImagesConfig, VisConfig
from tfseg.settings.reading import check_heeded, read, refuse_training
from tfseg.settings.run import TrainConfig

TRAINING = (ModelConfig, DataConfig, TrainConfig)
EVALUATION = (ModelConfig, DataConfig, EvalConfig)
PICTURES = (ModelConfig, DataConfig, VisConfig)
IMAGES = (ImagesConfig,)
EXPORT = (ExportConfig,)

# Where the published training programs differ from each other (PseudoSeg specification 1.3). The
# published supervised one also writes no image panels.
_OF_METHOD = {
    "supervised": {
        "base_learning_rate": 0.0001,
        "initialize_last_layer": True,
        "last_layers_contain_logits_only": False,
        "save_summaries_secs": 600,
    },
}


@dataclasses.dataclass(frozen=True)
class Training:
    """The settings of a training run.

    Attributes:
      network, data, train: its sections.
      given: what the user set himself, by name.
    """

    network: ModelConfig
    data: DataConfig
    train: TrainConfig
    given: Mapping[str, Any]

    @property
    def sections(self) -> dict[str, Any]:
        """The sections by their names in config.json."""
        method = self.train.method_settings
        return {"model": self.network, "data": self.data, "train": self.train, "method": method}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The settings of an evaluation, or of pictures.

    Attributes:
      data: where the records are.
      config: an EvalConfig or a VisConfig.
      given: what the user set himself, by name; those of the network complete the run's own.
    """

    data: DataConfig
    config: Any
    given: Mapping[str, Any]


def defaults_of(default_method: str) -> dict[str, Any]:
    """Returns the defaults of the training program that has this method as its default."""
    return {"method": default_method, **_OF_METHOD.get(default_method, {})}


def training(given: Mapping[str, Any], *, default_method: str) -> Training:
    """Reads the settings of a training run.

    Args:
      given: what the user set, by name.
      default_method: the method where none is given.

    Raises:
      UserError: see `reading.read` and `reading.check_heeded`.
    """
    defaults = defaults_of(default_method)
    # What is missing is named in the order of the help page.
    read(DataConfig, given, defaults=defaults)
    train = read(TrainConfig, given, defaults=defaults)
    of_preset = presets.defaults(train.preset, train.method, given)
    defaults = {**defaults, **train.method_settings.DEFAULTS, **of_preset}
    network, data, train = (
        read(cls, given, defaults=defaults) for cls in (ModelConfig, DataConfig, TrainConfig)
    )
    check_heeded(given, [network, data, train])
    return Training(network, data, train, dict(given))


def prediction(cls: type, given: Mapping[str, Any]) -> Prediction:
    """Reads the settings of an evaluation or of pictures; the network's are read with its run.

    Args:
      cls: EvalConfig or VisConfig.
      given: what the user set, by name.

    Raises:
      UserError: see `reading.read` and `reading.refuse_training`.
    """
    for section in (ModelConfig, DataConfig):
        refuse_training(section, given)
    config, data = read(cls, given), read(DataConfig, given)
    return Prediction(data, config, dict(given))


def alone(cls: type, given: Mapping[str, Any]) -> Any:
    """Reads the settings of a program whose flags are those of one class.

    Args:
      cls: `ImagesConfig` or `ExportConfig`.
      given: what the user set, by name.

    Raises:
      UserError: see `reading.read` and `reading.check_heeded`.
    """
    config = read(cls, given)
    check_heeded(given, [config])
    return config
