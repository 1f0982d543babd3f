"""What stands at which position: permutations, repetitions, class weights."""

import numpy as np
import pytest

from tfseg.data import sampling


def order_of(content, *, split="train", seed=0, epoch=0):
    return sampling.epoch_order(split, content, seed=seed, epoch=epoch)


def test_the_whole_split_is_shuffled():
    order = order_of(sampling.uniform(1000))[:, 0]
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    # Records of one shard, neighbours on disk, are no neighbours in the epoch.
    assert (np.abs(np.diff(order)) < 10).mean() < 0.05
    assert np.abs(order[:100].mean() - 500) < 100


WEIGHTED = sampling.class_weighted(np.eye(50), length=60)


@pytest.mark.parametrize("content", [sampling.uniform(50), WEIGHTED])
@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"split": "val"}, {"seed": -1}])
def test_order_depends_on_seed_epoch_and_split(content, other):
    first = order_of(content)
    np.testing.assert_array_equal(first, order_of(content))
    assert (first != order_of(content, **other)).any()


@pytest.mark.parametrize(
    "content, counts",
    [
        (sampling.uniform(3, 10), [4, 3, 3]),
        (sampling.oversampled(np.array([False, True, False, True]), 3), [1, 3, 1, 3]),
        (sampling.oversampled(np.array([True, False]), 1), [1, 1]),
    ],
)
def test_each_repetition_of_a_record_has_its_own_number(content, counts):
    order = order_of(content)
    assert len(order) == content.length == sum(counts)
    np.testing.assert_array_equal(np.bincount(order[:, 0]), counts)
    for record, count in enumerate(counts):
        numbers = order[order[:, 0] == record, 1]
        assert sorted(numbers) == list(range(count))


def test_draws_with_replacement_have_numbers_too():
    order = order_of(sampling.class_weighted(np.ones([3, 1]), length=30))
    assert len({tuple(row) for row in order}) == 30
    np.testing.assert_array_equal(order[order[:, 0] == 1, 1], range((order[:, 0] == 1).sum()))


LABELS = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]])
# Counts 3, 2, 1: classes weigh 6/4, 6/3, 6/2.
CLASS_WEIGHTS = np.array([1.5, 2.0, 3.0])


@pytest.mark.parametrize(
    "options, weights",
    [
        ({}, [1.5 / 2, 3.5 / 3, 6.5 / 4, 0]),
        ({"clutter_penalty": 0.5}, [1.5, 3.5, 6.5, 0]),
        ({"clutter_penalty": 2.0}, [1.5 / 2, 3.5 / 5, 6.5 / 10, 0]),
        ({"clutter_penalty": 2.0, "uncounted": 0}, [0, 3.5 / 2, 6.5 / 5, 0]),
        # With a penalty of 1 every class counts.
        ({"uncounted": 0}, [1.5 / 2, 3.5 / 3, 6.5 / 4, 0]),
    ],
)
def test_class_weights(options, weights):
    content = sampling.class_weighted(LABELS, length=7, **options)
    assert content.length == 7
    np.testing.assert_allclose(content.probabilities, np.divide(weights, sum(weights)))
    assert sampling.class_weighted(LABELS).length == 4


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError):
        sampling.class_weighted(LABELS[:1], clutter_penalty=2.0, uncounted=0)


def test_epochs_follow_each_other_and_are_found_again():
    content = sampling.oversampled(np.array([True, False, False]), 2)
    order = sampling.Order("train", content, seed=5)
    forward = [order.at(i) for i in range(40)]
    assert [epoch for epoch, _, _ in forward] == [i // 4 for i in range(40)]
    assert order.at(1) == forward[1]
    # A step's records, from an order of their own.
    found = sampling.step_records("train", 6, content, seed=5, step=2)
    np.testing.assert_array_equal(found, [record for _, record, _ in forward[12:18]])
