"""The dense CRF of `eval.py` and `vis.py`, at the size of the original images.

Probabilities leave the graph, are cut and resized to the size of the original image, and refined on
its pixels by worker processes: the library holds Python's lock, so threads would take turns. Images
come back in the order in which they were predicted. Classes that are not allowed stay so after the
CRF, for SLRNet too, whose published code lets the CRF bring them back.

Source: Learning Pseudo Labels specification 4.4 and 6; SLRNet specification 6.
"""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tfseg.data import tfexample
from tfseg.data.index import Index
from tfseg.data.parallel import parallel_map
from tfseg.data.record_reader import RecordReader
from tfseg.inference.pictures import decode_image, original_probabilities
from tfseg.inference.settings import crf_settings
from tfseg.ops import dense_crf
from tfseg.settings.data import DataConfig
from tfseg.settings.prediction import PredictionConfig


def refined(
    tasks: Iterable[tuple[Any, np.ndarray, np.ndarray, np.ndarray | None]],
    config: PredictionConfig,
    *,
    num_images: int,
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields the labels of images after the dense CRF, in the order of the tasks.

    Args:
      tasks: of each image a key, its probabilities, float32 [H, W, C], its pixels, uint8
        [H, W, 3], and which classes may be in it, float [C], or None; taken ahead.
      config: settings and number of processes of the CRF.
      num_images: how many there are.

    Yields:
      (key, int32 [H, W]).

    Raises:
      UserError: a process died.
    """
    yield from parallel_map(
        functools.partial(dense_crf.refined_labels, **crf_settings(config)),
        tasks,
        num_workers=min(config.crf_workers or os.cpu_count() or 1, num_images),
        # One image's probabilities are some twenty megabytes.
        chunk_size=1,
        chunks_ahead=2,
        flag="crf_workers",
    )


def refined_labels(
    batches: Iterable[tuple[Mapping[str, Any], np.ndarray]],
    reader: RecordReader,
    index: Index,
    config: PredictionConfig,
    data_config: DataConfig,
    *,
    present: np.ndarray | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the labels of every image after the dense CRF.

    Args:
      batches: of `evaluation_batches.make_eval_dataset`, each with its probabilities, float32
        [N, H, W, C]; taken while earlier ones are being refined.
      reader: of the split.
      index: of the split.
      config: settings and number of processes of the CRF.
      data_config: limit of image sizes.
      present: of `classes.classes_allowed`.

    Yields:
      (record number, int32 [height, width]) at the original size, rows of weight 0 left out.

    Raises:
      UserError: a record is damaged, or a process died.
    """

    def tasks():
        for batch, probs in batches:
            valid, weight = batch["valid"].numpy() > 0, batch["weight"].numpy()
            for row, i in enumerate(batch["index"].numpy()):
                if not weight[row]:
                    continue
                i = int(i)
                example, location = reader.read(i), reader.location(i)
                tfexample.check_pixels(
                    example.image,
                    max_megapixels=data_config.max_image_megapixels,
                    location=location,
                )
                size = example.height, example.width
                yield (
                    i,
                    np.ascontiguousarray(original_probabilities(probs[row], valid[row], *size)),
                    decode_image(example.image, location),
                    None if present is None else present[i],
                )

    yield from refined(tasks(), config, num_images=index.size)
