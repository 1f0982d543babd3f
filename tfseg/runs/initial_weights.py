"""What a fresh run starts from."""

from collections.abc import Sequence
from typing import Any

from tfseg.methods import teacher
from tfseg.models.heads.projection import CLASS_VECTORS
from tfseg.settings.run import TrainConfig
from tfseg.weights.checkpoint import find
from tfseg.weights.checkpoint.names import by_name
from tfseg.weights.initial import load_initial_weights
from tfseg.weights.pretrained import load_pretrained


def initialise_networks(method: Any, config: TrainConfig) -> None:
    """Initialises every network of the method; a run that resumes overwrites this."""
    if find.has_checkpoint(config.train_logdir):
        return
    if not config.pretrained_weights and not config.tf_initial_checkpoint:
        print(
            "note: neither --pretrained_weights nor --tf_initial_checkpoint: the backbone starts "
            "from random values",
            flush=True,
        )
    for part in method.stored().values():
        network = part.network
        # A teacher that is not trained becomes a copy of the network before the first step.
        if network.trainable_variables:
            random = _initialise(network, config, part.heads)
            if network is method.model:
                method.check_initial_weights(random)


def _initialise(model, config: TrainConfig, heads: Sequence[Any]) -> set[str]:
    """Gives a fresh network and its auxiliary heads their initial weights; says what matched.

    Returns:
      Names of the variables that keep their random values.
    """
    random = set(by_name(model.variables)) - {CLASS_VECTORS}
    if config.pretrained_weights:
        coverage = load_pretrained(model, config.pretrained_weights)
        print(coverage, flush=True)
        random.difference_update(coverage.matched)
    if config.tf_initial_checkpoint:
        coverage = load_initial_weights(
            model,
            config.tf_initial_checkpoint,
            heads=heads,
            initialize_last_layer=config.initialize_last_layer,
            last_layers_contain_logits_only=config.last_layers_contain_logits_only,
        )
        print(coverage, flush=True)
        random.difference_update(coverage.matched)
    return random


def ema_of(method: Any, build: Any, config: TrainConfig) -> Any:
    """Returns the network of averaged weights, equal to the model at the start; or None."""
    if not config.ema_decay:
        return None
    ema = method.build(build)
    teacher.copy(method.model, to=ema)
    return ema
