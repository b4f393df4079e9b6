"""The stage of the store's tests: a simulated disk, a virtual clock, threads that work at the end of the turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from saturnmq.disk.port import Disk
from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.kernel.clock import Background
from saturnmq.kernel.config import StoreConfig
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.later import Later, Reply
from saturnmq.kernel.message import Appended, Message, StoredMessage
from saturnmq.store.results import Arrival
from saturnmq.store.store import Store
from saturnmq.testing.clock import InlineBackground, VirtualClock
from saturnmq.wire.record import decode

T = TypeVar("T")

BORN_HOST = pack(Address("10.0.0.1", 4321))


def message(body: bytes = b"hello", topic: str = "Topic", queue_id: int = 0, **changes: Any) -> Message:
    fields: dict[str, Any] = {
        "topic": topic,
        "queue_id": queue_id,
        "body": body,
        "properties": b"KEYS\x01k\x02TAGS\x01tag\x02",
        "born_ms": 1_699_999_999_999,
        "born_host": BORN_HOST,
    }
    return Message(**(fields | changes))


class Answer:
    """Where a reply comes out."""

    def __init__(self, reply: Reply[Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self.answered = False
        if isinstance(reply, Later):
            reply.then(self._deliver, self._fail)
        else:
            self._deliver(reply)

    def _deliver(self, value: Any) -> None:
        self.value, self.answered = value, True

    def _fail(self, error: BaseException) -> None:
        self.error, self.answered = error, True


class HeldBackground:
    """A `kernel.clock.Background` whose threads stand still until the test lets them go."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def run(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[BaseException], None]) -> None:
        def job() -> None:
            try:
                value = work()
            except Exception as error:  # noqa: BLE001 - as threads do
                failed(error)
            else:
                done(value)

        self.jobs.append(job)

    def go(self) -> None:
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()


class Stage:
    """One store on one disk. `config` takes StoreConfig fields; files are small, so that rolls are near."""

    def __init__(
        self,
        disk: Disk | None = None,
        *,
        clock: VirtualClock | None = None,
        flusher: Background | None = None,
        reader: Background | None = None,
        **config: Any,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.disk = cast(SimulatedDisk, disk or SimulatedDisk())
        fields: dict[str, Any] = {
            "mapped_file_size_commit_log": 2048,
            "mapped_file_size_consume_queue": 200,
            "max_hash_slot_num": 20,
            "max_index_num": 40,
        }
        self.config = StoreConfig(**(fields | config))
        inline = InlineBackground(self.clock)
        self.store = Store(self.disk, self.config, self.clock, flusher or inline, reader or inline)
        self.arrivals: list[Arrival] = []
        self.store.on_arrival = self.arrivals.append

    def open(self) -> Stage:
        self.store.open()
        return self

    def append(self, *bodies: bytes, topic: str = "Topic", queue_id: int = 0) -> list[Appended]:
        return self.store.append([message(body, topic, queue_id) for body in bodies])

    def send(self, *bodies: bytes, topic: str = "Topic", queue_id: int = 0) -> list[Appended]:
        """Append in one turn and see that it became durable."""
        appended = self.append(*bodies, topic=topic, queue_id=queue_id)
        answer = Answer(self.store.when_durable(appended[-1].end, None))
        self.clock.run_soon()
        assert answer.answered
        assert answer.error is None
        return appended

    def wait(self, reply: Reply[T]) -> T:
        answer = Answer(reply)
        self.clock.run_soon()
        assert answer.answered, "no answer yet"
        if answer.error is not None:
            raise answer.error
        return cast(T, answer.value)

    def all(self, topic: str = "Topic", queue_id: int = 0) -> list[StoredMessage]:
        """Everything that readers see of a queue, checked against itself."""
        store = self.store
        offset, messages = store.min_offset(topic, queue_id), []
        while offset < store.max_offset(topic, queue_id):
            found = self.wait(store.get(topic, queue_id, offset, 32, 1 << 20))
            for record, queue_offset, position in zip(found.records, found.offsets, found.positions, strict=True):
                stored = decode(record, check_crc=True)
                assert (stored.topic, stored.queue_id, stored.queue_offset) == (topic, queue_id, queue_offset)
                assert stored.commit_log_offset == position
                messages.append(stored)
            assert found.next_offset > offset
            offset = found.next_offset
        return messages

    def bodies(self, topic: str = "Topic", queue_id: int = 0) -> list[bytes]:
        return [stored.body for stored in self.all(topic, queue_id)]

    def close(self) -> None:
        self.wait(self.store.stop())
        self.store.close()

    def again(self, **config: Any) -> Stage:
        """Another process opens the same disk."""
        fields = {name: getattr(self.config, name) for name in self.config.__struct_fields__}
        return Stage(self.disk, clock=self.clock, **(fields | config)).open()
