"""Maps a function over many tasks in worker processes, in order, with bounded memory."""

import collections
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tfseg.errors import UserError

_CHUNK = 8
_function: Callable[[Any], Any] | None = None


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _function = function


def _leave_with_parent() -> None:
    """Ends this worker when the parent is gone; a killed parent tells nobody."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _run_chunk(tasks: list[Any]) -> list[Any]:
    return [_function(task) for task in tasks]


def parallel_map(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    *,
    num_workers: int,
    chunk_size: int = _CHUNK,
    chunks_ahead: int = 4,
    flag: str = "num_workers",
) -> Iterator[Any]:
    """Yields `function(task)` in the order of the tasks.

    Args:
      function: picklable; sent to each worker once.
      tasks: picklable each; taken as they are needed.
      num_workers: processes; 1 works in this process.
      chunk_size: tasks that travel together; 1 where they are large.
      chunks_ahead: per worker, taken before their results are asked for.
      flag: the user's name for `num_workers`, without dashes.

    Raises:
      UserError: a worker process died.
      Exception: the first error of `function`, in the order of the tasks.
    """
    if num_workers <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: TensorFlow's threads (in programs that loaded it) do not survive a fork.
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(function,),
    )
    tasks = iter(tasks)
    running: collections.deque = collections.deque()
    try:
        while True:
            while len(running) < chunks_ahead * num_workers:
                chunk = list(itertools.islice(tasks, chunk_size))
                if not chunk:
                    break
                running.append(pool.submit(_run_chunk, chunk))
            if not running:
                return
            yield from running.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "A worker process ended unexpectedly, most likely for lack of memory.",
            received=f"--{flag}={num_workers}",
            fix=f"run again with a smaller --{flag}",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
