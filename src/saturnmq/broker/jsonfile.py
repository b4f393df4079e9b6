"""`config/*.json`: what a broker knows besides its messages, in Apache's formats."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import msgspec

from saturnmq.disk.port import Disk
from saturnmq.kernel.clock import Background, Clock, Timer
from saturnmq.kernel.errors import ProtocolError, SaturnError
from saturnmq.kernel.later import Later, Reply, hear
from saturnmq.wire.remoting import json

log = logging.getLogger(__name__)

T = TypeVar("T")

#: how long after a failed write the next one is tried, milliseconds
RETRY_MS = 5_000


#: a table rests so many times as long as its last write took
_REST = 9


class JsonFile:
    """One JSON file and its predecessor, `.bak` (common/ConfigManager.java).

    Owner: the table that it holds, which says `changed()` and encodes itself when the time to write has come. Nothing
    runs while nothing changes. A write that fails is logged and tried again; what is in memory stays right.
    """

    def __init__(
        self,
        disk: Disk,
        clock: Clock,
        name: str,
        encode: Callable[[], bytes],
        *,
        delay_ms: int = 0,
        before: Callable[[], Reply[None]] = lambda: None,
        background: Background | None = None,
    ) -> None:
        """`delay_ms` 0 writes at the end of the turn. `before` must be over before what it covers is written.

        A file that is written while the broker is busy has a `background`, so that it does not hold up the loop.
        """
        self._disk, self._clock, self._encode, self._delay_ms = disk, clock, encode, delay_ms
        self._before, self._background = before, background
        self._path = f"config/{name}"
        #: the file, not its predecessor, was found broken: it must not become the predecessor
        self._is_broken = False
        #: why the last write failed, if it did
        self.error: BaseException | None = None
        #: set while there is something to write
        self._timer: Timer | None = None
        #: who waits for the write after the one under way; None while there is none
        self._waiting: list[Later[None]] | None = None
        #: when the write under way began, and when the next one may: what a long table costs stays a small part of the
        #: time, however often it changes
        self._begun_ms = self._next_ms = 0

    def read(self, kind: type[T]) -> T | None:
        """What the file holds, else its predecessor, else None when there was none. Raises ValueError: both are
        broken."""
        broken: Exception | None = None
        for path in (self._path, self._path + ".bak"):
            if not self._disk.exists(path):
                continue
            try:
                data = self._disk.read_file(path)
                return msgspec.convert(json.parse(data, most_tokens=len(data)), kind, strict=False)
            except (ProtocolError, msgspec.ValidationError) as error:
                log.error("%s cannot be read: %s", path, error)
                broken = error
                self._is_broken = True
        if broken is not None:
            raise ValueError(f"neither {self._path} nor its .bak can be read: {broken}") from broken
        return None

    def changed(self) -> None:
        """See to it that the table is written in time. Cheap to call often."""
        if self._timer is None:
            self._schedule(max(self._delay_ms, self._next_ms - self._clock.now_ms()))

    def write(self) -> Reply[None]:
        """Write now what changed since the last write. Answers when that is on disk, or failed and will be repeated."""
        if self._waiting is not None:
            later: Later[None] = Later()
            self._waiting.append(later)
            return later
        if self._timer is None:
            return None
        self._timer.cancel()
        self._timer = None
        self._begun_ms = self._clock.now_ms()
        data = self._encode()
        self._waiting = []
        written: Later[None] = Later()
        try:
            hear(self._before(), lambda _: self._replace(data, written), lambda error: self._over(written, error))
        except SaturnError as error:
            self._over(written, error)
        return written if written.pending else None

    def _schedule(self, delay_ms: int) -> None:
        if delay_ms > 0:
            self._timer = self._clock.call_at(self._clock.now_ms() + delay_ms, self._due)
        else:
            self._timer = self._clock.call_soon(self._due)

    def _due(self) -> None:
        self.write()

    def _replace(self, data: bytes, written: Later[None]) -> None:
        def work() -> None:
            if self._disk.exists(self._path) and not self._is_broken:
                # a crash between the two leaves the .bak, which read() takes
                self._disk.rename(self._path, self._path + ".bak")
            self._disk.replace_file(self._path, data)
            self._is_broken = False

        if self._background is not None:
            self._background.run(work, lambda _: self._over(written), lambda error: self._over(written, error))
            return
        try:
            work()
        except OSError as error:
            self._over(written, error)
        else:
            self._over(written)

    def _over(self, written: Later[None], error: BaseException | None = None) -> None:
        self.error = error
        now_ms = self._clock.now_ms()
        self._next_ms = now_ms + _REST * (now_ms - self._begun_ms)
        if error is not None:
            log.error("%s was not written, trying again in %d ms: %s", self._path, RETRY_MS, error)
            if self._timer is None:
                self._schedule(RETRY_MS)
        waiting, self._waiting = self._waiting or [], None
        written.resolve(None)

        def release(_: None) -> None:
            for later in waiting:
                later.resolve(None)

        if waiting:
            hear(self.write(), release, lambda _: None)  # a write does not fail, it is repeated
