"""SIGTERM and Ctrl-C: finish the step, save, leave."""

import signal
import threading
from types import FrameType


class Stopped(Exception):
    """Raised between two steps once a signal has come; carries its number."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """The shell's convention for a program ended by a signal: 128 + its number."""
        return 128 + self.signum


class Interruption:
    """Context manager that notes SIGTERM and SIGINT instead of dying of them.

    A second Ctrl-C interrupts at once, for whoever cannot wait for the step to end. Outside the
    main thread it notes none.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self._received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self):
        # Python gives signals to the main thread alone; elsewhere they do what they did.
        if threading.current_thread() is not threading.main_thread():
            return self
        for signum in self.SIGNALS:
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exception):
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._received == signal.SIGINT and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signum
        print(
            f"\n{signal.Signals(signum).name} received: finishing the step and saving.", flush=True
        )

    @property
    def received(self) -> int:
        """The signal that has come; 0: none."""
        return self._received or 0

    def check(self) -> None:
        """Raises `Stopped` if a signal has come."""
        if self.received:
            raise Stopped(self.received)
