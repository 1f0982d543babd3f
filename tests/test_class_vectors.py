"""Word vectors by pixel."""

import numpy as np
import tensorflow as tf

from tfseg.ops.class_vectors import pixel_vectors


def test_each_pixel_has_the_vector_of_its_class_and_void_that_of_the_first():
    vectors = tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    label = np.array([[[2, 255], [0, 1]]], np.uint8)
    found = pixel_vectors(vectors, label, ignore_label=255)
    np.testing.assert_array_equal(found, [[[[5, 6], [1, 2]], [[1, 2], [3, 4]]]])
