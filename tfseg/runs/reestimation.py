"""Batch norm statistics measured anew after training, in the passes of evaluation.

The moving statistics of training belong to the passes of training: with dropout, with strong views,
with SLRNet's gate as it is in training. Where evaluation differs from these, the statistics do not
fit, and in short runs they also remember the weights of earlier steps. So the finished network
looks at training images as in evaluation, but every norm that learned statistics normalises by its
batch, and the statistics over all these images replace the moving ones. No mask is needed.

Source: ours; the statistics are pooled over batches as in Wu and Johnson, "Rethinking 'batch' in
BatchNorm", 2021 (section 3, "precise" statistics).
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfseg.models.layers.batch_norm import BatchNorm, PooledStatistics
from tfseg.runs.record import read, write_record
from tfseg.settings.run import TrainConfig
from tfseg.training.interruption import Stopped
from tfseg.weights.checkpoint import find, writing
from tfseg.weights.checkpoint.names import variable_name
from tfseg.weights.checkpoint.stored_networks import (
    deployable_network,
    load_network,
    network_values,
    stored_variables,
)

FOLDER = "reestimated"


def learning_norms(network: Any) -> list[BatchNorm]:
    """Returns the batch norm layers whose statistics training learns."""
    return [
        layer
        for layer in network.submodules
        if isinstance(layer, BatchNorm) and layer.learns_statistics
    ]


@contextlib.contextmanager
def _pooling(norms: Iterable[BatchNorm]) -> Iterator[None]:
    for norm in norms:
        norm.pooled = PooledStatistics(norm.moving_mean.shape[0])
    try:
        yield
    finally:
        for norm in norms:
            norm.pooled = None


def estimate(network: Any, batches: Iterable[tf.Tensor]) -> dict[str, np.ndarray]:
    """Measures the statistics of a network's norms.

    Args:
      network: on one device; its variables stay as they are.
      batches: images, float32 RGB 0..255 [B, H, W, 3], all of one size.

    Returns:
      float32 [channels] by variable name: the `moving_mean` and `moving_variance` of every norm
      that learns statistics and took part. Others keep theirs.
    """
    norms = learning_norms(network)

    @tf.function(autograph=False)
    def look(image: tf.Tensor) -> None:
        network(image, training=False)

    measured = {}
    with _pooling(norms):
        for batch in batches:
            look(batch)
        for norm in norms:
            result = norm.pooled.result()
            if result is not None:
                for variable, value in zip((norm.moving_mean, norm.moving_variance), result):
                    measured[variable_name(variable)] = value
    return measured


def write(
    logdir: str,
    build: Callable[[], Any],
    batches: Callable[[], Iterable[tf.Tensor]],
    *,
    num_batches: int,
    facts: dict[str, Any],
) -> str:
    """Writes a run's newest checkpoint with statistics measured anew to `<logdir>/reestimated/`.

    Args:
      logdir: the training directory, with a checkpoint; nothing of it changes.
      build: returns a network of the run, on one device.
      batches: returns the images, the same for every network.
      num_batches: their number, for the progress bar.
      facts: what the new config.json says of them under 'reestimated_batch_norm'.

    Returns:
      The new prefix. It holds the deployable network, and 'ema' where the run has it.
    """
    prefix = find.newest(logdir)
    stored = stored_variables(prefix)
    names = [deployable_network(prefix)]
    names += [name for name in ("ema",) if name in stored and name not in names]
    networks = {}
    for name in names:
        network = build()
        load_network(network, prefix, name)
        looking = tqdm(batches(), total=num_batches, desc="batch norm", unit="batch", disable=None)
        networks[name] = network_values(prefix, name) | estimate(network, looking)
    target = os.path.join(logdir, FOLDER, os.path.basename(prefix))
    writing.export(target, networks)
    record = {**(read(logdir) or {}), "reestimated_batch_norm": facts}
    write_record(os.path.join(logdir, FOLDER), record)
    return target


def run(config: TrainConfig, build: Callable[..., Any], data: Any, interruption: Any) -> int:
    """Writes a trained network with batch norm statistics measured anew.

    Args:
      config: of the run; it is complete.
      build: see `write`.
      data: the run's `TrainingData`.
      interruption: stops the work early.

    Returns:
      An exit code.
    """
    stream, batch_size, batches = data.largest_stream(config.reestimate_batch_norm)
    images = batch_size * batches
    print(f"batch norm: measuring its statistics on {images} images of stream {stream}", flush=True)

    def looked_at():
        for batch in data.first_views(stream, batch_size, batches):
            interruption.check()
            yield batch

    try:
        prefix = write(
            config.train_logdir,
            build,
            looked_at,
            num_batches=batches,
            facts={"images": images, "batch_size": batch_size, "stream": stream},
        )
    except Stopped as stopped:
        print("batch norm: not written; run the same command again", flush=True)
        return stopped.exit_code
    print(
        f"batch norm: {prefix}; evaluate it by --checkpoint_dir={os.path.dirname(prefix)}",
        flush=True,
    )
    return 0
