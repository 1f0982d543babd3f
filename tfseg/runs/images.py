"""Predicts plain images with a run."""

import dataclasses
from typing import Any

from tfseg.inference import settings as prediction_settings
from tfseg.inference.images.finding import find_images
from tfseg.inference.images.predict import predict_images
from tfseg.inference.images.trained import Trained
from tfseg.inference.watch import exiting_on_sigterm
from tfseg.runs import record as run_record
from tfseg.runs.load import resizing_of
from tfseg.runs.run import load_run
from tfseg.settings.data import DataConfig
from tfseg.settings.prediction import ImagesConfig
from tfseg.training import devices

# Of a program that predicted all images but those that it names.
EXIT_CODE_OF_DAMAGED = 1


def predict(config: ImagesConfig) -> dict[str, Any]:
    """Predicts the images that the settings name.

    Args:
      config: all settings.

    Returns:
      See `predict_images`.

    Raises:
      UserError: settings, images or checkpoint cannot be used.
    """
    found = find_images(config.images, config.output_dir)
    for note in found.notes:
        print(f"note: {note}", flush=True)
    strategy = devices.make_prediction_strategy(config.strategy, config.num_clones)
    with strategy.scope():
        run = load_run(
            config.checkpoint_dir,
            config.network,
            with_classifier=prediction_settings.uses_scores(config),
        )
    print(devices.describe(strategy), flush=True)
    print(f"checkpoint: {run.prefix}", flush=True)
    trained = Trained(
        model=run.network,
        spec=run.spec,
        data_config=dataclasses.replace(DataConfig(), **resizing_of(run.record)),
        median_sides=run_record.median_sides(run.record),
        prefix=run.prefix,
        step=run.step,
    )
    with exiting_on_sigterm():
        return predict_images(trained, config, found, strategy=strategy)
