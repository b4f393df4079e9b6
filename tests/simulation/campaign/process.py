"""A store and a broker over it, on a disk that others may have left in any state."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from campaign.history import must, name
from saturnmq.broker.broker import Broker
from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.kernel.config import BrokerConfig, StoreConfig
from saturnmq.kernel.later import Later, Reply
from saturnmq.kernel.message import StoredMessage
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import TopicConfig
from saturnmq.store.commitlog import LogReader
from saturnmq.store.store import Store
from saturnmq.store.walk import Walk, find_record
from saturnmq.testing.clock import VirtualClock
from saturnmq.wire.record import decode

T = TypeVar("T")

HOUR_MS = 3_600_000
#: those that clients send to, by number of queues
TOPICS = {"orders": 2, "bills": 1, "notes": 3}
POP_GROUPS = ("pop-a", "pop-b")
PULL_GROUPS = ("pull-a", "pull-b")


class Settings:
    """Of all processes of one campaign. Files are small, so that their ends are near."""

    def __init__(self, chance: random.Random, *, sync: bool | None = None) -> None:
        self.sync = chance.random() < 0.7 if sync is None else sync
        self.log_bytes = chance.choice((4096, 8192, 16384))
        self.directories = chance.choice((("commitlog",), ("commitlog",), ("disk1/log", "disk2/log")))
        self.store = StoreConfig(
            store_path_commit_log=",".join(self.directories),
            mapped_file_size_commit_log=self.log_bytes,
            mapped_file_size_consume_queue=chance.choice((200, 400, 2000)),
            flush_disk_type="SYNC_FLUSH" if self.sync else "ASYNC_FLUSH",
            file_reserved_time=1,
            delete_when=";".join(map(str, range(24))) if chance.random() < 0.5 else "",
            disk_min_free_bytes=0,
            max_hash_slot_num=chance.choice((5, 50)),
            max_index_num=chance.choice((10, 100)),
            max_message_size=2000,
            timer_roll_window_slot=chance.choice((600, 20_000)),
            mapped_file_size_timer_log=1040,
        )
        # the producer is always there, and asked until it is heard
        self.broker = BrokerConfig(revive_queue_num=2, channel_expired_timeout=1 << 40, transaction_check_max=1 << 30)

    def log(self, disk: SimulatedDisk) -> LogReader:
        """Which must have its files."""
        reader = LogReader(disk, self.directories[0], self.log_bytes, self.directories[1:])
        reader.find_files()
        return reader


class Reports(logging.Handler):
    """The errors that the server logs. In a campaign these are many, and only the campaign listens."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


REPORTS = Reports()


def listen() -> None:
    logger = logging.getLogger("saturnmq")
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    if REPORTS not in logger.handlers:
        logger.addHandler(REPORTS)


def stop_listening() -> None:
    """For what else runs in this process."""
    logger = logging.getLogger("saturnmq")
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    logger.removeHandler(REPORTS)


class Threads:
    """A `kernel.clock.Background`: one thread, which takes its time, at times that the seed draws."""

    def __init__(self, clock: VirtualClock, chance: random.Random) -> None:
        self._clock, self._chance = clock, chance
        self._jobs: deque[Callable[[], None]] = deque()
        self._busy = False

    def run(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[BaseException], None]) -> None:
        def job() -> None:
            try:
                value = work()
            except Exception as error:  # noqa: BLE001 - as threads do
                self._wait(partial(self._tell, partial(failed, error)))
            else:
                self._wait(partial(self._tell, partial(done, value)))

        self._jobs.append(job)
        if not self._busy:
            self._next()

    def _next(self) -> None:
        self._busy = bool(self._jobs)
        if self._jobs:
            self._wait(self._jobs.popleft())

    def _tell(self, told: Callable[[], None]) -> None:
        told()
        self._next()

    def _wait(self, call: Callable[[], None]) -> None:
        delay_ms = self._chance.choice((0, 0, 0, 0, 1, 2, 30))
        if delay_ms:
            self._clock.call_at(self._clock.now_ms() + delay_ms, call)
        else:
            self._clock.call_soon(call)


class Process:
    """Started on the disk as it is."""

    def __init__(self, disk: SimulatedDisk, clock: VirtualClock, chance: random.Random, settings: Settings) -> None:
        self.disk, self.clock, self.chance, self.settings = disk, clock, chance, settings
        disk.now_ms = clock.now_ms
        REPORTS.texts.clear()
        self.store = Store(disk, settings.store, clock, Threads(clock, chance), Threads(clock, chance))
        self.store.open()
        self.broker = Broker(settings.broker, self.store, clock, random=chance.randrange, metrics=Metrics())
        self.watch()
        self.wait(self.broker.start())
        for topic, queues in TOPICS.items():
            if self.broker.topics.get(topic) is None:
                self.broker.topics.put(TopicConfig(topic_name=topic, read_queue_nums=queues, write_queue_nums=queues))
        for group in (*POP_GROUPS, *PULL_GROUPS):
            self.broker.groups.get(group)

    def watch(self) -> None:
        """Called before anything happens."""

    def wait(self, reply: Reply[T]) -> T:
        """The answer, when time has passed. Raises what it fails with."""
        if not isinstance(reply, Later):
            return reply
        values: list[Any] = []
        reply.then(values.append, values.append)
        for _ in range(2_000):
            if values:
                break
            self.clock.advance(5)
        assert values, "no answer in ten seconds"
        if isinstance(values[0], BaseException):
            raise values[0]
        return cast(T, values[0])

    def close(self) -> None:
        self.wait(self.broker.stop())
        self.wait(self.store.stop())
        self.store.close()
        self.clock.run_soon()

    # ---------------------------------------------------------------------------------------------- looking

    @property
    def first(self) -> int:
        """The log position before which everything is deleted."""
        return self.settings.log(self.disk).find_files()[0]

    def read(self, topic: str, queue_id: int) -> list[StoredMessage]:
        """All that readers see of a queue."""
        offset, messages = self.store.min_offset(topic, queue_id), list[StoredMessage]()
        while offset < self.store.max_offset(topic, queue_id):
            found = self.wait(self.store.get(topic, queue_id, offset, 32, 1 << 20))
            for record, at, position in zip(found.records, found.offsets, found.positions, strict=True):
                stored = decode(record, check_crc=True)
                place = stored.topic, stored.queue_id, stored.queue_offset, stored.commit_log_offset
                must(place == (topic, queue_id, at, position), 2, f"{topic} {queue_id} {at} gives the one of {place}")
                previous = messages[-1].queue_offset if messages else -1
                must(at > previous, 2, f"{topic} {queue_id}: {name(stored.body)} of {at} comes behind {previous}")
                messages.append(stored)
            must(found.next_offset > offset, 1, f"{topic} {queue_id} stands still at {offset}")
            offset = found.next_offset
        return messages

    def logged(self, end: int) -> list[StoredMessage]:
        """Every whole record of the log up to there, in its order."""
        reader, records = self.settings.log(self.disk), list[StoredMessage]()
        walk = Walk(reader, self.first, end, end)
        while True:
            records += list(walk)
            if walk.end >= end or (found := find_record(reader, walk.end + 1, end, 0)) is None:
                return records
            walk.resume(found)
