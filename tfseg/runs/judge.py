"""Evaluates and draws a run."""

from typing import Any

from tfseg.errors import UserError
from tfseg.inference import settings as prediction_settings
from tfseg.inference.draw import draw as draw_split
from tfseg.inference.watch import evaluate_repeatedly, exiting_on_sigterm, watch_checkpoints
from tfseg.runs import classes
from tfseg.runs.load import network_of, seen_as_in_training
from tfseg.settings.prediction import EvalConfig
from tfseg.settings.programs import Prediction
from tfseg.training import devices
from tfseg.weights.checkpoint import find
from tfseg.weights.checkpoint.stored_networks import load_network


def evaluate(settings: Prediction) -> dict[str, Any]:
    """Measures the checkpoints of a run as they come, or one.

    Args:
      settings: with an EvalConfig.

    Returns:
      The last metrics, as in metrics.json.

    Raises:
      UserError: settings, data or checkpoint cannot be used.
    """
    config = settings.config
    strategy = devices.make_evaluation_strategy(config.num_clones)
    _wait_for_first_checkpoint(config)
    with strategy.scope():
        model, spec = network_of(
            settings.data,
            settings.given,
            config.checkpoint_dir,
            "eval_crop_size",
            config.eval_crop_size,
            config,
            with_classifier=config.weakly or prediction_settings.uses_scores(config),
        )
    print(devices.describe(strategy), flush=True)
    return evaluate_repeatedly(
        model,
        strategy,
        spec,
        seen_as_in_training(settings.data, settings.given, config.checkpoint_dir, config),
        config,
        unseen_masks=classes.unseen_masks(config.checkpoint_dir),
    )


def _wait_for_first_checkpoint(config: EvalConfig) -> None:
    """Returns once there is a checkpoint, so that its run's config.json can be read."""
    watch = watch_checkpoints(config.checkpoint_dir, config.eval_interval_secs, 1)
    with exiting_on_sigterm():
        next(watch)


def draw(settings: Prediction) -> dict[str, Any] | None:
    """Draws the predictions of a checkpoint.

    Args:
      settings: with a VisConfig.

    Returns:
      See `inference.draw.draw`.

    Raises:
      UserError: settings, data or checkpoint cannot be used.
    """
    config = settings.config
    prefix = find.newest(config.checkpoint_dir)
    if prefix is None:
        raise UserError(
            "The directory holds no checkpoint.",
            where="--checkpoint_dir",
            received=config.checkpoint_dir,
            fix="train first, or give the directory of a training run",
        )
    model, spec = network_of(
        settings.data,
        settings.given,
        prefix,
        "vis_crop_size",
        config.vis_crop_size,
        config,
        with_classifier=prediction_settings.uses_scores(config),
    )
    step = load_network(model, prefix, config.network)
    print(f"checkpoint: {prefix}", flush=True)
    return draw_split(
        model,
        spec,
        seen_as_in_training(settings.data, settings.given, prefix, config),
        config,
        prefix=prefix,
        step=step,
    )
