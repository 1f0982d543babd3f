"""What the workers of a cluster must decide alike: to stop, to save, to draw.

Every step, checkpoint and picture of a multi-worker run is a collective operation: all workers take
part, or they wait for each other for ever. But signals come to one process, and clocks differ.

A question between two steps costs as much as a short step. So whether to stop is asked within the
steps (`trainer`), together with what these measure.
"""

import tensorflow as tf


class Agreement:
    """Finds the largest number that any worker holds; with one worker, its own.

    Args:
      strategy: of the run. Every worker must ask in the same order.

    Attributes:
      is_alone: there is one worker.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.is_alone = not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)

        def largest_everywhere(values: tf.Tensor) -> tf.Tensor:
            def gather() -> tf.Tensor:
                context = tf.distribute.get_replica_context()
                return tf.reduce_max(context.all_gather(values[None], axis=0), axis=0)

            per_replica = strategy.run(gather)
            return strategy.experimental_local_results(per_replica)[0]

        self._largest = tf.function(largest_everywhere, autograph=False)

    def largest(self, value: int) -> int:
        """Returns the largest of the workers' values."""
        return self._largest_of_each([value])[0]

    def any(self, *values: bool) -> list[bool]:
        """Returns of each value whether it is true for any worker; that is one question."""
        return [bool(largest) for largest in self._largest_of_each([int(v) for v in values])]

    def _largest_of_each(self, values: list[int]) -> list[int]:
        if self.is_alone:
            return values
        return self._largest(tf.constant(values, tf.int32)).numpy().tolist()
