"""What the workers of a cluster must decide alike: to stop, to save, to draw.

Every step, checkpoint and picture of a multi-worker run is a collective operation: all workers take
part, or they wait for each other for ever. But signals come to one process, and clocks differ.
"""

import tensorflow as tf


class Agreement:
    """Finds the largest number that any worker holds; with one worker, its own.

    Args:
      strategy: of the run. Every worker must ask in the same order.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._alone = not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)

        def largest_everywhere(value: tf.Tensor) -> tf.Tensor:
            def gather() -> tf.Tensor:
                context = tf.distribute.get_replica_context()
                return tf.reduce_max(context.all_gather(value[None], axis=0))

            per_replica = strategy.run(gather)
            return strategy.experimental_local_results(per_replica)[0]

        self._largest = tf.function(largest_everywhere, autograph=False)

    def largest(self, value: int) -> int:
        """Returns the largest of the workers' values."""
        return value if self._alone else int(self._largest(tf.constant(value, tf.int32)))

    def any(self, value: bool) -> bool:
        """Returns whether any worker's value is true."""
        return bool(self.largest(int(value)))
