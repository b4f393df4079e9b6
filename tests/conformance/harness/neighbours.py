"""Well-behaved clients beside a test's bad ones: they send all the time and notice when anything disturbs them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from types import TracebackType

PAUSE_S = 0.02


class Neighbour:
    """Calls `send` again and again in a thread; keeps what went wrong and how long the slowest call took.

    Use it in a `with` statement.
    """

    def __init__(self, name: str, send: Callable[[int], None]) -> None:
        self._send = send
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self.calls = 0
        self.slowest_s = 0.0
        self.error: Exception | None = None

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for number in itertools.count():
            begun = time.monotonic()
            try:
                self._send(number)
            except Exception as error:  # noqa: BLE001 - whatever disturbed it is what the test wants to see
                self.error = error
                return
            self.calls += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
            if self._stop.wait(PAUSE_S):
                return
