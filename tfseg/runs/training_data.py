"""A run's streams: positioned, described, and able to say what went wrong in them."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfseg.data import pipeline, sampling
from tfseg.data.sources import make_sources
from tfseg.data.specs import DatasetSpec
from tfseg.data.stream import Stream
from tfseg.inference.coloring import panel
from tfseg.settings.data import DataConfig
from tfseg.settings.run import TrainConfig
from tfseg.weights.checkpoint.writing import writing_events


class TrainingData:
    """The data of a training run.

    Args:
      streams: what the method asks for.
      spec: the data set.
      data_config: directory, augmentation, limits.
      config: of the run; `seed` and `train_logdir` are used.
      strategy: its replicas share every batch.

    Attributes:
      drawn_by: see `pipeline.drawn_by`.

    Raises:
      UserError: see `make_sources`.
    """

    # Colour of the padding; the network says which, once it is built.
    mean_pixel: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __init__(
        self,
        streams: Mapping[str, Stream],
        spec: DatasetSpec,
        data_config: DataConfig,
        config: TrainConfig,
        strategy: tf.distribute.Strategy,
    ):
        self._streams, self._data, self._config = streams, data_config, config
        self._strategy = strategy
        self._sources = make_sources(streams, spec, data_config)
        self.drawn_by = pipeline.drawn_by(streams)
        self._ordered_by = pipeline.ordered_by(streams)

    def describe(self) -> str:
        """Returns one line on the data that was found."""
        parts = []
        for name, source in self._sources.items():
            index, used = source.index, len(set(source.epoch.pool.tolist()))
            left_out = f", {index.size - used} of them left out" if used < index.size else ""
            parts.append(
                f"{name}: split {source.split}, {index.size} images, "
                f"{int(index.has_mask.sum())} with masks{left_out}"
            )
        return "data: " + "; ".join(parts)

    def facts(self) -> dict[str, dict[str, Any]]:
        """Returns split, images and masks of each stream, by which changed data is noticed."""
        return {
            name: {
                "split": source.split,
                "images": int(source.index.size),
                "masks": int(source.index.has_mask.sum()),
            }
            for name, source in self._sources.items()
        }

    def median_sides(self) -> list[int]:
        """Returns the medians of the shorter and the longer sides of all images read, pixels."""
        sizes = [
            np.stack([source.index.height, source.index.width], 1)[np.unique(source.epoch.pool)]
            for source in self._sources.values()
        ]
        medians = np.median(np.sort(np.concatenate(sizes), axis=1), axis=0)
        return [int(side) for side in medians]

    def _dataset(self, start_step: int, part: Any) -> Any:

        return pipeline.make_train_dataset(
            self._streams,
            self._sources,
            self._data,
            mean_pixel=self.mean_pixel,
            seed=self._config.seed,
            start_step=start_step,
            part=part,
        )

    def iterator(self, start_step: int) -> Any:
        """Returns the distributed iterator of batches from a step on."""

        def of_worker(context):
            part = pipeline.Slice(
                pipeline=context.input_pipeline_id,
                num_pipelines=context.num_input_pipelines,
                replicas=context.num_replicas_in_sync // context.num_input_pipelines,
            )
            return self._dataset(start_step, part)

        return iter(self._strategy.distribute_datasets_from_function(of_worker))

    def largest_stream(self, num_images: int) -> tuple[str, int, int]:
        """Chooses the images on which batch norm is measured anew.

        Args:
          num_images: how many are asked for.

        Returns:
          The stream with most images (the first of these); the size of a batch, which is that of a
          replica's whole step, so that its memory suffices; and the number of batches, at least as
          many as give `num_images`.
        """
        sizes = {name: len(set(s.epoch.pool.tolist())) for name, s in self._sources.items()}
        together = sum(stream.batch_size for stream in self._streams.values())
        batch_size = max(1, together // self._strategy.num_replicas_in_sync)
        return max(sizes, key=sizes.__getitem__), batch_size, -(-num_images // batch_size)

    def first_views(self, name: str, batch_size: int, batches: int) -> Iterator[Any]:
        """Yields batches of a stream's first views, float32 RGB 0..255 [B, H, W, 3]."""

        stream = dataclasses.replace(self._streams[name], batch_size=batch_size, order_of=None)
        dataset = pipeline.make_train_dataset(
            {name: stream},
            {name: self._sources[name]},
            self._data,
            mean_pixel=self.mean_pixel,
            seed=self._config.seed,
        )
        for batch in dataset.take(batches):
            yield pipeline.unpacked(batch)[name]["image"]

    def describe_batch(self, step: int) -> str:
        """Names the images of a step's global batch, by stream."""

        parts = []
        for name, source in self._sources.items():
            numbers = sampling.step_records(
                self._ordered_by[name],
                self._streams[name].batch_size,
                source.epoch,
                seed=self._config.seed,
                step=step,
            )
            parts.append(f"{name}: {', '.join(source.index.ids[numbers])}")
        return "; ".join(parts)

    def panel_writer(self, method: Any, spec: Any, is_chief: bool, max_images: int = 4) -> Any:
        """Returns a function that makes image panels of always the same batch at a step.

        All workers make them, for they read variables together; the chief writes them.
        """

        # Read with the first panels, so that the first step need not wait for it.
        @functools.cache
        def batch() -> Any:
            whole = pipeline.unpacked(next(iter(self._dataset(0, pipeline.Slice()))))
            return tf.nest.map_structure(lambda x: x[:max_images], whole)

        predict = tf.function(method.panels)
        # Made when there is something to write, for it leaves a file.
        make_writer = functools.cache(tf.summary.create_file_writer)

        def write(step: int) -> None:
            panels = {name: value.numpy() for name, value in predict(batch()).items()}
            if not panels or not is_chief:
                return
            # (An array: of a list of bytes TensorFlow makes int32, and a black picture of that.)
            rows = np.stack([panel(row, spec) for row in zip(*panels.values())])
            folder = self._config.train_logdir
            with writing_events(folder):
                writer = make_writer(folder)
                with writer.as_default(step=step):
                    tf.summary.image(", ".join(panels), rows, max_outputs=max_images)
                writer.flush()

        return write

    def explain(self) -> None:
        """Raises the user's error behind a failed pipeline, if there is one."""
        for source in self._sources.values():
            source.explain()

    def write_bad_records(self) -> None:
        """Lists the records that --skip_bad_records replaced."""
        lines = [line for source in self._sources.values() for line in source.bad_records()]
        if lines:
            path = os.path.join(self._config.train_logdir, "bad_records.txt")
            with open(path, "w", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
            print(f"{len(lines)} damaged records were replaced by others: {path}", flush=True)
