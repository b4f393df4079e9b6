"""Garbage collection that holds nobody up.

A full collection looks at everything that lives: with 50,000 consumers that wait, at two million objects, for a second
in which nothing else happens. But hardly anything here dies in cycles, so what lived through one collection is frozen
and left alone by the next, which looks at what came since then, for 40 ms at most. What is frozen still dies with its
last reference; only cycles do not. So every LOOK_MS, when there is twice as much as after the last time, all of it is
looked at: garbage never takes more memory than what lives, and a long pause comes only after growth (decision 7).
"""

from __future__ import annotations

import gc

from saturnmq.kernel.clock import Clock, Timer

LOOK_MS = 600_000
#: so much is no reason to look: some 50 MB
FEW_OBJECTS = 500_000


class Collecting:
    """Owner of the collector of this process, from `start` to `stop`."""

    def __init__(self, clock: Clock, few_objects: int = FEW_OBJECTS) -> None:
        self._clock, self._few_objects = clock, few_objects
        self._timer: Timer | None = None
        #: frozen objects that are no reason to look at all of them
        self._enough = few_objects

    def start(self) -> None:
        """What was made for the start of the process lives as long as it does."""
        gc.callbacks.append(self._collected)
        self._collect_all()
        self._wait()

    def stop(self) -> None:
        gc.callbacks.remove(self._collected)
        if self._timer is not None:
            self._timer.cancel()

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        """By the collector, on any thread, in the middle of anything."""
        if phase == "stop" and info["generation"] == 2:
            gc.freeze()

    def _wait(self) -> None:
        self._timer = self._clock.call_at(self._clock.now_ms() + LOOK_MS, self._look)

    def _look(self) -> None:
        if gc.get_freeze_count() > self._enough:
            self._collect_all()
        self._wait()

    def _collect_all(self) -> None:
        gc.unfreeze()
        gc.collect()
        gc.collect()  # finds nothing; the next one comes when there is a quarter more than this one found
        self._enough = max(self._few_objects, 2 * gc.get_freeze_count())
