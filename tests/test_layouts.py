"""Made layouts: what they change, and that they choose evenly."""

import numpy as np
import pytest
import tensorflow as tf

from tfseg.ops import layouts

UNSEEN, FOREGROUND = (2, 6), (1, 3, 5, 7)
# Background, three seen classes in the first image, one in the second, none in the third; void.
LABEL = np.zeros([3, 4, 6], np.int32)
LABEL[0, 0], LABEL[0, 1, :3], LABEL[0, 2, 3:] = 1, 3, 7
LABEL[1, 1:3] = 5
LABEL[:, 3, 2] = 255


def _made(make, seed):
    return make(tf.constant(LABEL), tf.constant([seed, 1]), unseen=UNSEEN, foreground=FOREGROUND)


def _changes(old, new):
    """Returns {old class: new class} and checks that all its pixels changed alike."""
    changes = {}
    for c in np.unique(old):
        (now,) = np.unique(new[old == c])
        if now != c:
            changes[int(c)] = int(now)
    return changes


@pytest.mark.parametrize("make, first", [(layouts.rename, 1), (layouts.balanced, 2)])
def test_classes_are_given_away_whole(make, first):
    for seed in range(20):
        made = _made(make, seed).numpy()
        changes = [_changes(old, new) for old, new in zip(LABEL, made)]
        assert [len(change) for change in changes] == [first, 1, 0]
        for change in changes:
            assert set(change) <= set(FOREGROUND) and set(change.values()) <= set(UNSEEN)
            # While there are unseen classes left, each is taken once.
            assert len(set(change.values())) == min(len(change), len(UNSEEN))


def test_every_class_and_every_unseen_one_comes_up():
    changes = [_changes(LABEL[0], _made(layouts.rename, seed)[0].numpy()) for seed in range(90)]
    pairs = [next(iter(change.items())) for change in changes]
    counts = {pair: pairs.count(pair) for pair in set(pairs)}
    # Six combinations, 15 of each on average.
    assert len(counts) == 6 and min(counts.values()) >= 4 and max(counts.values()) <= 30


def test_the_seed_decides():
    first, again = (_made(layouts.balanced, 5) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    others = [np.array_equal(first, _made(layouts.balanced, seed)) for seed in range(10)]
    assert not all(others)


def test_compiled_code_makes_layouts_too():
    compiled = tf.function(_made, jit_compile=True)
    made = compiled(layouts.rename, 3).numpy()
    assert [len(_changes(old, new)) for old, new in zip(LABEL, made)] == [1, 1, 0]
