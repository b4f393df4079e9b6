"""`bench/timers.py`: how exactly delayed messages come, and what ten million that wait take, beside Apache 5.5.0.

Accuracy: `--rate` messages a second are due for `--seconds`, sent some time before, each for its own moment of the
second; a message that is due at a whole second or before it comes there. Told is how long after that second consumers
that long-poll have it (received) and how long after it was stored (stored): p50, p99 and the worst; none may be early.
Exits non-zero when one is, or when ours are later than LIMIT_MS at p99.

    bench/timers.py [--rate 2000] [--seconds 20] [--skip-apache]
    bench/timers.py --pending 10000000        memory and start of a server with so many messages that wait
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvloop
from run import APACHE, BUILD, ROOT, Target, apache, saturn

sys.path.insert(0, str(ROOT / "tests" / "conformance"))

from harness.admin import Admin, decoded, encoded

from saturnmq.wire import record

SEND_MESSAGE_V2 = 310
PULL_MESSAGE = 11
QUEUES = 8
#: from the first send to the first message that is due
AHEAD_S = 15
#: of ours at p99, received after the first whole second (issue 6)
LIMIT_MS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--skip-apache", action="store_true")
    parser.add_argument("--pending", type=int, default=0)
    arguments = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    if arguments.pending:
        pending(arguments.pending)
        return
    servers: dict[str, Callable[[], Any]] = {
        "SaturnMQ, SYNC_FLUSH": lambda: saturn("SYNC_FLUSH"),
        "SaturnMQ, ASYNC_FLUSH": lambda: saturn("ASYNC_FLUSH"),
    }
    if not arguments.skip_apache:
        servers[APACHE] = apache
    late = []
    print("| server | due a second | received p50 ms | p99 ms | worst ms | stored p99 ms | early |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, start in servers.items():
        with start() as target:
            lateness = uvloop.run(measure(target, arguments.rate, arguments.seconds))
        received = sorted(received for received, _, _ in lateness)
        stored = sorted(stored for _, stored, _ in lateness)
        early = sum(early for _, _, early in lateness)
        p99 = received[len(received) * 99 // 100]
        print(
            f"| {name} | {arguments.rate} | {received[len(received) // 2]:.1f} | {p99:.1f} | {received[-1]:.1f} "
            f"| {stored[len(stored) * 99 // 100]:.1f} | {early} |",
            flush=True,
        )
        if name != APACHE and (early or p99 > LIMIT_MS):
            late.append(f"{name}: p99 {p99:.1f} ms, the limit is {LIMIT_MS}; {early} early")
    if late:
        raise SystemExit("\n".join(late))


async def measure(target: Target, rate: int, seconds: int) -> list[tuple[float, float, bool]]:
    """Of each message how late it was received and stored, milliseconds, and whether that was early."""
    admin = Admin(target.addresses["namesrv"], target.addresses["broker"])
    topic = admin.create_topic("DELAY", queues=QUEUES)
    admin.close()
    first_s = int(time.time()) + AHEAD_S
    count = rate * seconds
    due_ms = [first_s * 1000 + number * 1000 // rate for number in range(count)]
    address = target.addresses["broker"]
    sent = asyncio.gather(*(send(address, topic, due_ms[part::4]) for part in range(4)))
    batches: list[tuple[float, bytes]] = []
    loop, (host, port) = asyncio.get_running_loop(), address.split(":")
    consumers = [
        (await loop.create_connection(partial(Consumer, topic, queue, batches), host, int(port)))[0]
        for queue in range(QUEUES)
    ]
    await sent
    gc.disable()  # this program's pauses are not the server's
    assert time.time() < first_s, "the messages were not sent in time: raise AHEAD_S"
    await asyncio.sleep(first_s + seconds + 2 - time.time())
    for consumer in consumers:
        consumer.close()
    gc.enable()
    lateness = [late for now_ms, body in batches for late in lateness_of(now_ms, body)]
    assert len(lateness) >= count, f"{count - len(lateness)} of {count} messages did not come"
    return lateness


async def send(address: str, topic: str, due_ms: list[int]) -> None:
    reader, writer = await asyncio.open_connection(*address.split(":"))
    fields = {"a": "bench", "b": topic, "c": "TBW102", "d": "4", "f": "0", "g": "0", "h": "0"}

    async def answers() -> None:
        for _ in due_ms:
            header, _ = await answer(reader)
            assert header["code"] == 0, header
            window.release()

    window = asyncio.Semaphore(256)
    receiver = asyncio.create_task(answers())
    for number, due in enumerate(due_ms):
        await window.acquire()
        properties = f"UNIQ_KEY\x01{due}-{number}\x02TIMER_DELIVER_MS\x01{due}\x02"
        queue = {"e": str(number % QUEUES), "i": properties, "j": "0", "k": "false", "m": "false"}
        writer.write(encoded(SEND_MESSAGE_V2, number, fields | queue, b"x" * 100))
    await receiver
    writer.close()


class Consumer(asyncio.Protocol):
    """Long-polls one queue for ever; what came is looked at afterwards, so that this program is not what is late."""

    def __init__(self, topic: str, queue_id: int, batches: list[tuple[float, bytes]]) -> None:
        self._batches, self._received = batches, b""
        fields = {
            "consumerGroup": "bench-group", "topic": topic, "queueId": str(queue_id), "maxMsgNums": "32",
            "commitOffset": "0", "suspendTimeoutMillis": "15000", "subscription": "*", "subVersion": "0",
            "queueOffset": "OFFSET", "sysFlag": "6",
        }  # fmt: skip
        self._begin, self._end = encoded(PULL_MESSAGE, 0, fields)[8:].split(b"OFFSET")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pull(b"0")

    def data_received(self, data: bytes) -> None:
        now_ms = time.time() * 1000
        self._received += data
        while len(self._received) >= 8:
            length, header_bytes = struct.unpack_from(">II", self._received)
            if len(self._received) < 4 + length:
                break
            header, body = self._received[8 : 8 + header_bytes], self._received[8 + header_bytes : 4 + length]
            self._received = self._received[4 + length :]
            self._pull(header.partition(b'"nextBeginOffset":"')[2].partition(b'"')[0])
            if body:
                self._batches.append((now_ms, body))

    def _pull(self, offset: bytes) -> None:
        header = self._begin + offset + self._end
        self._transport.write(struct.pack(">II", len(header) + 4, len(header)) + header)


def lateness_of(now_ms: float, body: bytes) -> Iterator[tuple[float, float, bool]]:
    for data in record.split(body):
        stored = record.decode(data)
        at = stored.properties.index(b"TIMER_DELIVER_MS\x01") + 17
        due_ms = int(stored.properties[at : at + 13])
        second_ms = -(-due_ms // 1000) * 1000
        yield now_ms - second_ms, stored.stored_ms - second_ms, stored.stored_ms < due_ms or now_ms < due_ms


async def answer(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    return decoded(await reader.readexactly(length))


# ---------------------------------------------------------------------------------------------- many that wait


def pending(count: int) -> None:
    """Make a store with so many messages that wait, spread over two days, and start a server on it."""
    from saturnmq.testing.server import LocalServer

    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        began = time.monotonic()
        fill(Path(folder) / "data", count)
        each_us = (time.monotonic() - began) / count * 1e6
        print(f"{count} messages for the next two days were taken and sorted in, {each_us:.1f} µs each")
        print(f"this process has {memory('self')} MB")
        began = time.monotonic()
        with LocalServer(dev=False, home=Path(folder), data_dir=Path(folder) / "data") as server:
            print(f"a server on it starts in {time.monotonic() - began:.2f} s and has {memory(str(server.pid))} MB")
            time.sleep(10)
            print(f"after ten seconds {memory(str(server.pid))} MB")
        with LocalServer(dev=False) as server:
            print(f"one on an empty directory has {memory(str(server.pid))} MB")


def fill(data_dir: Path, count: int) -> None:
    from saturnmq.broker.timers import Timers
    from saturnmq.disk.real import RealDisk
    from saturnmq.kernel import properties as names
    from saturnmq.kernel.config import StoreConfig
    from saturnmq.kernel.message import Message
    from saturnmq.kernel.metrics import Metrics
    from saturnmq.store.store import Store
    from saturnmq.testing.clock import InlineBackground, VirtualClock

    clock = VirtualClock(time.time_ns() // 1_000_000)
    background = InlineBackground(clock)
    store = Store(RealDisk(str(data_dir)), StoreConfig(flush_disk_type="ASYNC_FLUSH"), clock, background, background)
    store.open()
    timers = Timers(store, clock, random=lambda below: 0, metrics=Metrics())
    timers.start()
    store.on_arrival = lambda arrival: timers.arrived()
    begin_ms, span_ms = clock.now_ms() + 600_000, 47 * 3_600_000
    for number in range(count):
        due_ms = begin_ms + number * 7_919_000 % span_ms
        message = Message("pending", 0, b"x" * 100, b"", clock.now_ms(), bytes(8))
        properties = {names.UNIQUE_KEY: f"{number:032X}", names.TIMER_DELIVER_MS: str(due_ms)}
        timers.postpone(message, properties)
        message.properties = names.encode(properties)
        store.append((message,))
        if number % 500 == 499:
            clock.advance(10)
    clock.advance(2_000)
    timers.stop()
    clock.run_soon()
    store.stop()
    clock.run_soon()
    store.close()


def memory(pid: str) -> str:
    """Resident, and of it what no file backs."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return " of which anonymous ".join(f"{int(lines[key].split()[0]) // 1024}" for key in ("VmRSS", "RssAnon"))


if __name__ == "__main__":
    main()
