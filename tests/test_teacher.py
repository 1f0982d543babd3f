import numpy as np
import pytest
import tensorflow as tf

from tfseg.methods import teacher


class Network(tf.Module):
    """A weight and a moving statistic, listed in either order."""

    def __init__(self, weight, mean, reverse=False):
        super().__init__()
        weight = tf.Variable(weight, dtype=tf.float32, name="layer/weights")
        mean = tf.Variable(mean, dtype=tf.float32, trainable=False, name="layer/moving_mean")
        self._listed = [mean, weight] if reverse else [weight, mean]
        self.weight, self.mean = weight, mean

    @property
    def variables(self):
        return self._listed


def values(network):
    return network.weight.numpy().tolist(), network.mean.numpy().tolist()


def test_a_copy_goes_by_name_and_takes_moving_statistics_along():
    student, copy = Network([1.0, 2.0], [3.0, 4.0]), Network([0.0, 0.0], [0.0, 0.0], reverse=True)
    teacher.copy(student, to=copy)
    assert values(copy) == ([1.0, 2.0], [3.0, 4.0])
    student.weight.assign([9.0, 9.0])
    assert values(copy) == ([1.0, 2.0], [3.0, 4.0])


def test_a_variable_that_the_student_lacks_is_a_defect():
    lacking = Network([0.0], [0.0])
    lacking._listed = lacking._listed[:1]
    with pytest.raises(KeyError, match="layer/moving_mean"):
        teacher.copy(lacking, to=Network([0.0], [0.0]))
    teacher.copy(Network([5.0], [0.0]), to=lacking)
    assert lacking.weight.numpy() == [5.0]


def test_a_number_moves_weights_and_statistics_by_the_rest_of_it():
    student, followed = Network([1.0], [10.0]), Network([0.0], [2.0], reverse=True)
    teacher.follow(followed, student, decay=0.75, step=tf.constant(0, tf.int64))
    assert values(followed) == ([0.25], [4.0])


def test_what_is_equal_stays_equal_to_the_last_digit():
    value = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    student, followed = Network(value, value), Network(value, value)
    teacher.follow(followed, student, decay=0.999, step=tf.constant(7))
    np.testing.assert_array_equal(followed.weight, value)


def test_a_schedule_gives_the_decay_of_each_step():
    # UniMatch V2: the teacher is the student at first, and then a longer and longer mean of it.
    def schedule(step):
        return tf.minimum(1.0 - 1.0 / (step + 1.0), 0.75)

    @tf.function
    def follow(step):
        teacher.follow(followed, student, decay=schedule, step=step)

    student, followed = Network([0.0], [0.0]), Network([100.0], [100.0])
    expected = None
    for step, value in enumerate([8.0, 4.0, 0.0, 4.0, 16.0, 2.0]):
        student.weight.assign([value])
        student.mean.assign([value])
        follow(tf.constant(step, tf.int64))
        decay = min(1 - 1 / (step + 1), 0.75)
        expected = value if step == 0 else decay * expected + (1 - decay) * value
        np.testing.assert_allclose(values(followed), [[expected]] * 2, rtol=1e-6)


def test_the_usual_schedule_begins_at_a_tenth_and_ends_at_the_decay():
    schedule = teacher.warming_up(0.9)
    steps = tf.constant([0.0, 8.0, 80.0, 81.0, 1e6])
    np.testing.assert_allclose(schedule(steps), [0.1, 0.5, 0.9, 0.9, 0.9], rtol=1e-6)


def test_replicas_agree_on_a_teacher(two_replicas):
    with two_replicas.scope():
        student, followed = Network([4.0], [8.0]), Network([0.0], [0.0])

    @tf.function
    def follow():
        teacher.follow(followed, student, decay=lambda t: 0.5 + 0.0 * t, step=tf.constant(3))

    follow()
    for name, expected in (("weight", 2.0), ("mean", 4.0)):
        copies = two_replicas.experimental_local_results(getattr(followed, name))
        assert [float(copy.numpy()[0]) for copy in copies] == [expected] * 2
