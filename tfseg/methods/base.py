"""The contract between a method and the trainer.

A method turns batches into named scalar losses. It declares which streams of data it wants, which
networks it owns and how their variables are grouped for the optimiser; the trainer does the rest.
A method file reads top to bottom in its paper's order and contains no loop, no gradient and no
flag. What it shares between replicas goes through `ops.losses` and `methods.running`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfseg.data.specs import DatasetSpec
from tfseg.data.stream import Stream
from tfseg.errors import check_choice
from tfseg.models import decayed_variables
from tfseg.models.layers.batch_norm import BatchNorm
from tfseg.monitors import Monitors
from tfseg.settings.data import DataConfig
from tfseg.settings.methods.base import MethodSettings
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig

Batch = Mapping[str, Mapping[str, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a checkpoint holds under the name of a network.

    Attributes:
      network: of a method.
      heads: its auxiliary heads; all their variables have names of their own.
    """

    network: Any
    heads: Sequence[tf.Module] = ()

    @property
    def variables(self) -> list[tf.Variable]:
        """The network's variables, and those of the heads."""
        return [v for part in (self.network, *self.heads) for v in part.variables]


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """Variables that are updated alike.

    Attributes:
      name: unique within the method; names the optimiser's state in the checkpoint.
      variables: the trainable variables of this group.
      lr_multiplier: factor on the learning rate.
      gradient_multiplier: factor on the gradient, weight decay included.
      weight_decay: L2 factor; adds weight_decay * w to the gradient. AdamW takes w := w (1 - rate
        weight_decay) in its place.
      optimizer: name of the optimiser; None: the run's.
      schedule: learning rate or schedule; None: the run's.
      momentum: momentum; None: the run's.
      nesterov: Nesterov's form of momentum.
    """

    name: str
    variables: Sequence[tf.Variable]
    lr_multiplier: float = 1.0
    gradient_multiplier: float = 1.0
    weight_decay: float = 0.0
    optimizer: str | None = None
    schedule: Any = None
    momentum: float | None = None
    nesterov: bool = False


# Substrings that mark "last layers", for the gradient multiplier and for what is left out of an
# initial checkpoint (specification 4.7).
LOGITS_SCOPE = "logits"
LAST_LAYER_SCOPES = (
    LOGITS_SCOPE,
    "image_pooling",
    "aspp",
    "concat_projection",
    "decoder",
    "meta_architecture",
)


def default_param_groups(
    variables: Sequence[tf.Variable], decayed: Sequence[tf.Variable], config: TrainConfig
) -> list[ParamGroup]:
    """Groups variables as the DeepLab family does: biases learn twice as fast, kernels decay.

    With --parameter_groups=plain all decay, and only the last layers may learn faster.

    Args:
      variables: trainable variables.
      decayed: those of them with an L2 term.
      config: `weight_decay`, `parameter_groups`, `last_layer_gradient_multiplier` and
        `last_layers_contain_logits_only` are used.

    Returns:
      Groups that hold every variable exactly once.

    Source: PseudoSeg specification 4.7: factor 2 where the name contains `biases`, times the
    last-layer multiplier where a last-layer string occurs anywhere in the name.
    """
    scopes = (LOGITS_SCOPE,) if config.last_layers_contain_logits_only else LAST_LAYER_SCOPES
    plain = config.parameter_groups == "plain"
    decayed_ids = {id(v) for v in decayed}
    members: dict[tuple[float, float], list[tf.Variable]] = {}
    for variable in variables:
        multiplier = 2.0 if "biases" in variable.name and not plain else 1.0
        if any(scope in variable.name for scope in scopes):
            multiplier *= config.last_layer_gradient_multiplier
        decay = config.weight_decay if plain or id(variable) in decayed_ids else 0.0
        members.setdefault((multiplier, decay), []).append(variable)
    return [
        ParamGroup(
            name=f"group{i}",
            variables=group,
            gradient_multiplier=multiplier,
            weight_decay=decay,
        )
        for i, ((multiplier, decay), group) in enumerate(members.items())
    ]


def new_layers_groups(
    model: Any,
    config: TrainConfig,
    *,
    multiplier: float,
    heads: Sequence[tf.Module] = (),
    nesterov: bool = False,
    biases_alike: bool = False,
) -> list[ParamGroup]:
    """Groups a network's variables in four: backbone or new layers, weights or biases.

    New layers learn `multiplier` times as fast, biases twice as fast as weights, and biases do not
    decay. Groups without a trainable variable are left out.

    Args:
      model: network with a `backbone`.
      config: `weight_decay` is used.
      multiplier: factor on the learning rate of what is not the backbone.
      heads: auxiliary heads, which are new layers too.
      nesterov: as in `ParamGroup`.
      biases_alike: biases learn and decay as weights do.

    Source: SLRNet specification 5; STRICT specification 5; ZS3 specification 5 for `biases_alike`.
    """
    backbone = {id(v) for v in model.backbone.trainable_variables}
    members: dict[str, list[tf.Variable]] = {}
    for variable in [v for part in (model, *heads) for v in part.trainable_variables]:
        part = "backbone" if id(variable) in backbone else "new"
        leaf = variable.name.split(":")[0].rsplit("/", 1)[-1]
        is_bias = leaf in ("biases", "bias", "beta") and not biases_alike
        kind = "biases" if is_bias else "weights"
        members.setdefault(f"{part}_{kind}", []).append(variable)
    multipliers = {"backbone": 1.0, "new": multiplier}
    return [
        ParamGroup(
            name=name,
            variables=variables,
            lr_multiplier=multipliers[name.split("_")[0]] * (2.0 if "biases" in name else 1.0),
            weight_decay=0.0 if "biases" in name else config.weight_decay,
            nesterov=nesterov,
        )
        for name, variables in members.items()
    ]


def freeze_norms(backbone: tf.Module) -> None:
    """Makes scale and shift of a backbone's batch norm constants.

    Its statistics are another matter (--fine_tune_batch_norm).
    """
    for layer in backbone.submodules:
        if isinstance(layer, BatchNorm):
            layer.trainable = False


class Method(tf.Module):
    """Base of all methods.

    Args:
      build_model: `build_model(name='model', with_classifier=False)` returns a new network; a
        method with several networks calls it once for each, with different names.
      spec: the data set's classes.
      config: the run's settings.
      settings: the method's own, of its class `Config`; None: the defaults.
      over_replicas: loss denominators are those of the global batch (`--sync_batch_norm`).
    """

    # The method's own settings: a dataclass of `settings.methods`.
    Config: type = MethodSettings
    # The values of --head with which it works.
    heads: tuple[str, ...] = ("deeplab",)
    # Equal parts of the run, at whose start the trainer calls `begin_round` and, but for the first,
    # sets momentum and learning rate back to what they were at the start. None: no such parts.
    rounds: int | None = None

    def __init__(
        self,
        *,
        build_model: Callable[..., Any],
        spec: DatasetSpec,
        config: TrainConfig,
        settings: Any = None,
        over_replicas: bool = False,
    ):
        super().__init__(name="method")
        self.spec = spec
        self.config = config
        self.settings = self.Config() if settings is None else settings
        self.over_replicas = over_replicas
        self.model = self.build(build_model)

    def build(self, build_model: Callable[..., Any]) -> Any:
        """Makes the networks and returns the deployable one."""
        return build_model()

    def networks(self) -> dict[str, Any]:
        """Returns every network by its name in the checkpoint; the first is the deployable one."""
        return {"model": self.model}

    def auxiliary_heads(self) -> Sequence[tf.Module]:
        """Returns the modules that are trained beside the deployable network and are no part of it.

        Checkpoints hold their variables among those of the network; evaluation does not read them.
        The default has none.
        """
        return ()

    def stored(self) -> dict[str, Stored]:
        """Returns what checkpoints hold of every network, by its name."""
        return {
            name: Stored(network, self.auxiliary_heads() if network is self.model else ())
            for name, network in self.networks().items()
        }

    @classmethod
    def network_config(cls, config: ModelConfig, settings: Any) -> ModelConfig:
        """Returns the network's settings, completed by what the method settles itself.

        Raises:
          UserError: the method does not work with the network's head.
        """
        check_choice(config.head, cls.heads, flag="head", what=f"head for {cls.__name__}")
        return config

    @classmethod
    def complete_settings(cls, settings: Any, replicas: int) -> Any:
        """Returns the method's settings, those included that depend on the number of replicas."""
        return settings

    def check_initial_weights(self, random: Collection[str]) -> None:
        """Checks what a fresh run starts from; the default accepts everything.

        Args:
          random: names of the deployable network's variables that start from random values.

        Raises:
          UserError: the method would learn nothing from there.
        """

    @classmethod
    def streams(cls, data: DataConfig, train: TrainConfig, settings: Any) -> dict[str, Stream]:
        """Declares the data: one `Stream` per key of the batch."""
        raise NotImplementedError(f"{cls.__name__} declares no streams")

    def losses(
        self, batch: Batch, step: tf.Tensor, seed: tf.Tensor, monitors: Monitors
    ) -> dict[str, tf.Tensor]:
        """Returns named, already weighted scalars; their sum is minimised.

        Args:
          batch: one replica's batch, `batch[stream][key]` (vocabulary in `data.pipeline`).
          step: int64 scalar, optimiser steps done so far.
          seed: int32 [2], unique to run, step, replica and part of the batch; for dropout.
          monitors: takes measurements that are no losses.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no losses")

    def param_groups(self) -> list[ParamGroup]:
        """Returns the groups for the optimiser; every trainable variable is in exactly one."""
        if self.config.parameter_groups == "encoder":
            return new_layers_groups(
                self.model,
                self.config,
                multiplier=self.config.head_rate_multiplier,
                heads=self.auxiliary_heads(),
                biases_alike=True,
            )
        parts = (self.model, *self.auxiliary_heads())
        return default_param_groups(
            [v for part in parts for v in part.trainable_variables],
            [v for part in parts for v in decayed_variables(part)],
            self.config,
        )

    def after_update(self, step: tf.Tensor) -> None:
        """Runs once for all replicas after a step's update; the default does nothing."""

    def begin(self) -> None:
        """Runs before the first step of a run, outside of any graph; the default does nothing."""

    def begin_round(self) -> None:
        """Runs before the first step of a round, outside of any graph; the default does nothing."""

    def pseudo_labels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns the probabilities behind the pseudo labels of images without masks, by kind.

        Each is float32 [N, h, w, C], by networks as in evaluation. The default has none.

        Args:
          batch: as of `losses`; only the stream of these images is needed.
        """
        return {}

    def panels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns pictures for image summaries by name, in the order in which they are shown.

        Each is float32 RGB 0..255 [N, H, W, 3], int32 class ids [N, h, w], or float32 in [0, 1]
        [N, h, w]; the first gives the size.
        """
        return {}
