"""Which record stands at which position of the endless sequence of epochs.

An epoch is drawn as a whole, from (seed, split, epoch) alone, so every position is arithmetic: a
run resumes at any step, and workers and replicas take disjoint parts of one sequence, without a
sampler's state.

- 'uniform': a permutation of a pool, in which every record stands once, or some several times
  (`oversampled`), or which comes round until the epoch is full.
- 'class_weighted': draws with replacement, where records of rare classes come more often
  (`class_weighted`).

Source: PseudoSeg specification 2.5 (theirs shuffled a buffer of 100 decoded crops); SLRNet
specification 2 for oversampling and class weights.
"""

import dataclasses
import threading
import zlib

import numpy as np

# The class that is in so many pictures that it does not make one cluttered.
UNCOUNTED_CLASS = "person"


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What an epoch of a split is drawn from.

    Attributes:
      pool: int64 [m], record numbers, some perhaps several times.
      length: positions of an epoch.
      probabilities: float64 [m], of each of the pool in every draw with replacement, with a sum of
        1; None: the pool is gone through, again and again until the epoch is full, and shuffled.
    """

    pool: np.ndarray
    length: int
    probabilities: np.ndarray | None = None


def uniform(size: int, length: int | None = None) -> Epoch:
    """Returns the epoch that has each of `size` records once, or in a circle up to `length`."""
    return Epoch(np.arange(size), length or size)


def oversampled(often: np.ndarray, times: int) -> Epoch:
    """Returns the epoch that has some records several times.

    Args:
      often: bool [n], for each record, whether it stands in the epoch `times` times or once.
      times: at least 1.

    Source: SLRNet specification 2.
    """
    often = np.asarray(often)
    extra = np.tile(np.flatnonzero(often), times - 1)
    return Epoch(np.concatenate([np.arange(often.size), extra]), often.size + extra.size)


def class_weighted(
    image_labels: np.ndarray,
    *,
    length: int | None = None,
    clutter_penalty: float = 1.0,
    uncounted: int | None = None,
) -> Epoch:
    """Returns the epoch of draws with replacement that prefers rare classes in tidy images.

    A class weighs (labels in all) / (its labels + 1). An image weighs the sum of its classes'
    weights times a factor of its number of labels n:

    - 1 / (n + 1) with a penalty of 1,
    - 1 / (n^penalty + 1) with a greater one, where n leaves out class `uncounted`; 0 where n is 0,
    - 1 with a smaller one.

    Args:
      image_labels: [records, K], multi-hot; an image without labels is never drawn.
      length: draws in an epoch; None: as many as records.
      clutter_penalty: the exponent.
      uncounted: column of the class that does not count in n; None: all count.

    Raises:
      ValueError: every image weighs 0.

    Source: SLRNet specification 2. Published for L2ID, n left out the neighbour of the class that
    was meant; here it is that class.
    """
    y = np.asarray(image_labels, np.float64)
    counts = y.sum(0)
    weights = y @ (counts.sum() / (counts + 1.0))
    number = y.sum(1)
    if clutter_penalty == 1.0:
        weights /= number + 1.0
    elif clutter_penalty > 1.0:
        if uncounted is not None:
            number = number - y[:, uncounted]
        weights *= (number > 0) / (number**clutter_penalty + 1.0)
    if not weights.any():
        raise ValueError("no image has a weight")
    return Epoch(np.arange(len(y)), length or len(y), weights / weights.sum())


def without(epoch: Epoch, dropped: np.ndarray) -> Epoch:
    """Returns an epoch that leaves out some records.

    Args:
      epoch: a pool that is gone through once (`uniform`, `oversampled`).
      dropped: int64 [k], record numbers.
    """
    pool = epoch.pool[~np.isin(epoch.pool, dropped)]
    return Epoch(pool, len(pool))


def generator(seed: int, split: str, *numbers: int) -> np.random.Generator:
    """Returns the generator of a run's seed, a split's name (or `drawn_by`) and more numbers."""
    # Entropy must not be negative; seeds may.
    return np.random.default_rng([seed % (1 << 64), zlib.crc32(split.encode()), *numbers])


def _occurrence(values: np.ndarray) -> np.ndarray:
    """Returns for each value how often it stood before, int64 [n]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    runs = np.diff(np.r_[starts, len(values)])
    result = np.empty(len(values), np.int64)
    result[order] = np.arange(len(values)) - np.repeat(starts, runs)
    return result


def epoch_order(split: str, content: Epoch, *, seed: int, epoch: int) -> np.ndarray:
    """Returns what stands at the positions of one epoch.

    Args:
      split: name that the order is drawn by: of the split, or of `pipeline.drawn_by`.
      content: what the epoch is drawn from.
      seed: of the run.
      epoch: number of the epoch.

    Returns:
      int64 [length, 2]: record number, and a number that tells apart the positions of one epoch
      that hold the same record.
    """
    rng, size = generator(seed, split, epoch), len(content.pool)
    if content.probabilities is None:
        drawn = rng.permutation(content.length)
        held = content.pool[np.arange(content.length) % size]
        return np.stack([held, _occurrence(held)], 1)[drawn]
    drawn = content.pool[rng.choice(size, content.length, p=content.probabilities)]
    return np.stack([drawn, _occurrence(drawn)], 1)


class Order:
    """What stands at the positions of the endless sequence of epochs; remembers the last few.

    Threads may share it.
    """

    def __init__(self, split: str, content: Epoch, seed: int):
        self._split, self._content, self._seed = split, content, seed
        self._epochs: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def at(self, position: int) -> tuple[int, int, int]:
        """Returns (epoch, record number, how often it stood in the epoch) of a position."""
        epoch, place = divmod(position, self._content.length)
        with self._lock:
            order = self._epochs.get(epoch)
            if order is None:
                order = epoch_order(self._split, self._content, seed=self._seed, epoch=epoch)
                self._epochs[epoch] = order
                for old in [e for e in self._epochs if e < epoch - 2]:
                    del self._epochs[old]
        record, repeat = order[place]
        return epoch, int(record), int(repeat)


def step_records(
    split: str, batch_size: int, content: Epoch, *, seed: int, step: int
) -> np.ndarray:
    """Returns the record numbers of a step's global batch.

    Args:
      split: name that the order is drawn by: of the split, or of `pipeline.drawn_by`.
      batch_size: of the whole batch.
      content: what an epoch of the split is drawn from.
      seed: of the run.
      step: steps done before it.

    Returns:
      int64 [batch_size], in the order of the batch; damaged records included, which
      --skip_bad_records replaces.
    """
    order = Order(split, content, seed)
    first = step * batch_size
    return np.array([order.at(first + i)[1] for i in range(batch_size)])
