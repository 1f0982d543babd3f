"""Raw predictions: ids there and back. (Names: tests of visualization.)"""

import numpy as np
import pytest

from tests.small_split import SPEC
from tfseg.data.prediction_files import class_ids, raw_ids
from tfseg.data.specs import DATASETS, DatasetSpec


@pytest.mark.parametrize(
    "spec",
    [*DATASETS.values(), SPEC, DatasetSpec("many", tuple(f"c{i}" for i in range(300)))],
    ids=lambda spec: spec.name,
)
def test_written_ids_are_read_back(spec):
    ids = np.arange(spec.num_classes).reshape(1, -1)
    np.testing.assert_array_equal(class_ids(raw_ids(ids, spec), spec), ids)


def test_the_ignore_label_stays_and_what_is_no_id_is_marked():
    spec = DATASETS["cityscapes"]
    np.testing.assert_array_equal(
        class_ids(np.array([[7, 33, 255, 0, 34, 300]]), spec), [[0, 18, 255, -1, -1, -1]]
    )
    np.testing.assert_array_equal(class_ids(np.array([[0, 3, 4, 255]]), SPEC), [[0, 3, -1, 255]])
