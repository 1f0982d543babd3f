"""Times several pieces of work in turns, so that all see the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping


def median_times(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each piece of work, by name.

    Args:
      work: functions that return when their result is there; each runs once before, for tracing.
      rounds: how often all take their turn.
    """
    for function in work.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}
