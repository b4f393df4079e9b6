"""`make bench-store`: the store through its own API, beside what the machine can do at all, in one run.

    bench/store.py [--dir DIR] [--only append,read,…] [--gib 20] [--messages 50000000]

    append    messages per second: ASYNC_FLUSH, SYNC_FLUSH with 1 and 64 who wait; raw writes, raw fdatasyncs
    read      messages per second, 32 at a time, from the page cache
    open      of a cleanly closed store: nearly empty, with --gib of messages, with 100,000 queues
    recover   after a crash with no checkpoint left: bytes per second; with one: what is read of a full store
    memory    of a process that stores --messages small messages, and of the next one that opens them

Everything is deleted afterwards. Exits non-zero when a target is missed, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from saturnmq.disk.real import RealDisk
from saturnmq.kernel.config import StoreConfig
from saturnmq.kernel.later import Later, Reply
from saturnmq.kernel.message import Message
from saturnmq.net.clock import LoopClock
from saturnmq.net.tasks import ThreadBackground, wait_reply
from saturnmq.store.store import CHECKPOINT_BYTES, Store

HOST = bytes([127, 0, 0, 1, 0, 0, 0, 9])
PROPERTIES = b"UNIQ_KEY\x01AC1100021F9018B4AAC2%010X\x02WAIT\x01true"
GIB, MIB = 1 << 30, 1 << 20
SIZES = {"128 B": 128, "4 KiB": 4096}
#: appended in one turn of the loop, as a busy broker does
PER_TURN = 64
QUEUES = 100_000

OPEN_LIMIT_S = 1.0
RECOVER_LEAST = {"128 B": 150 * 10**6, "4 KiB": 500 * 10**6}
MEMORY_LIMIT = 150 * MIB


# ------------------------------------------------------------------------------------------------ one store


@asynccontextmanager
async def opened(root: Path, flush: str = "ASYNC_FLUSH") -> AsyncIterator[Store]:
    """Closed cleanly at the end."""
    loop = asyncio.get_running_loop()
    flusher, reader = ThreadBackground(loop, "flush", 1), ThreadBackground(loop, "disk", 2)
    store = Store(RealDisk(str(root)), StoreConfig(flush_disk_type=flush), LoopClock(loop), flusher, reader)  # type: ignore[arg-type]
    store.open()
    try:
        yield store
        await wait_reply(store.stop())
    finally:
        store.close()
        flusher.close()
        reader.close()


def message(number: int, body: bytes, queues: int = 8, topics: int = 1) -> Message:
    topic = f"bench-{number // queues % topics}"
    return Message(topic, number % queues, body, PROPERTIES % number, 1_700_000_000_000, HOST)


async def fill(store: Store, count: int, size: int, *, queues: int = 8, topics: int = 1) -> None:
    """As fast as the disk takes them."""
    body = os.urandom(size)
    for start in range(0, count, 1024):
        end = min(start + 1024, count)
        store.append([message(number, body, queues, topics) for number in range(start, end)])
        await asyncio.sleep(0)
        if start % (1 << 17) == 0:  # else the page cache grows for ever, and the entries of queues with it
            await wait_reply(store.flush())
    await wait_reply(store.flush())


def status(field: str) -> int:
    """Of this process, bytes: VmHWM, RssAnon, …"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def read_bytes() -> int:
    """What this process has read so far, from files or their caches."""
    return int(Path("/proc/self/io").read_text().split()[1])


# ------------------------------------------------------------------------------- parts, each in a process


async def append_async(root: Path, size: int) -> dict[str, float]:
    body, count = os.urandom(size), 400_000 if size < 1000 else 100_000
    async with opened(root) as store:
        begin, cpu = time.perf_counter(), time.process_time()
        for start in range(0, count, PER_TURN):
            for number in range(start, start + PER_TURN):
                store.append([message(number, body)])
            await asyncio.sleep(0)
        return _rate(count, begin, cpu)


async def append_sync(root: Path, size: int, waiters: int) -> dict[str, float]:
    body, seconds = os.urandom(size), 4
    async with opened(root, "SYNC_FLUSH") as store:
        done, running = 0, waiters
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        begin, cpu = time.perf_counter(), time.process_time()

        def next_one(_: object) -> None:
            nonlocal done, running
            done += 1
            if time.perf_counter() - begin > seconds:
                running -= 1
                if not running:
                    over.set_result(None)
                return
            (appended,) = store.append([message(done, body)])
            reply: Reply[None] = store.when_durable(appended.end, None)
            assert isinstance(reply, Later)
            reply.then(next_one, over.set_exception)

        for _ in range(waiters):
            next_one(None)
        await over
        return _rate(done - waiters, begin, cpu)


async def read_hot(root: Path, size: int) -> dict[str, float]:
    count = 400_000 if size < 1000 else 100_000
    async with opened(root) as store:
        await fill(store, count, size, queues=1)
        begin, cpu, offset = time.perf_counter(), time.process_time(), 0
        while offset < count:
            reply = store.get("bench-0", 0, offset, 32, MIB)
            offset = (await wait_reply(reply) if isinstance(reply, Later) else reply).next_offset
        return _rate(count, begin, cpu)


def _rate(count: int, begin: float, cpu: float) -> dict[str, float]:
    return {"rate": count / (time.perf_counter() - begin), "cpu_us": (time.process_time() - cpu) / count * 1e6}


async def made(root: Path, count: int, size: int, queues: int = 8, topics: int = 1) -> dict[str, float]:
    begin = time.perf_counter()
    async with opened(root) as store:
        await fill(store, count, size, queues=queues, topics=topics)
        figures = {"rate": count / (time.perf_counter() - begin), "anon": status("RssAnon"), "peak": status("VmHWM")}
    return {**figures, "seconds": time.perf_counter() - begin}


async def made_and_crashed(root: Path, count: int, size: int) -> dict[str, float]:
    """With all that was written on the disk, and nothing said at the end."""
    async with opened(root) as store:
        await fill(store, count, size)
        os._exit(0)


async def opening(root: Path) -> dict[str, float]:
    """How long it takes until messages are taken, and what is read for it."""
    disk, config, loop = RealDisk(str(root)), StoreConfig(), asyncio.get_running_loop()
    flusher, reader = ThreadBackground(loop, "flush", 1), ThreadBackground(loop, "disk", 2)
    before, begin, cpu = read_bytes(), time.perf_counter(), time.process_time()
    store = Store(disk, config, LoopClock(loop), flusher, reader)
    store.open()
    figures = {
        "seconds": time.perf_counter() - begin,
        "cpu": time.process_time() - cpu,
        "read": read_bytes() - before,
        "log": store.end,
        "anon": status("RssAnon"),
    }
    (appended,) = store.append([message(0, b"x")])
    await wait_reply(store.when_durable(appended.end, None))
    await wait_reply(store.stop())
    store.close()
    flusher.close()
    reader.close()
    return figures


def raw_writes(root: Path, size: int) -> dict[str, float]:
    """One `pwrite` a record."""
    record, count = os.urandom(size + 160), 400_000 if size < 1000 else 100_000
    descriptor = os.open(root / "raw", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, len(record) * count)
    begin, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        os.pwrite(descriptor, record, number * len(record))
    return _rate(count, begin, cpu)


def raw_syncs(root: Path, size: int, at_once: int) -> dict[str, float]:
    """One `pwrite` and one `fdatasync` for so many records."""
    records, seconds, done = os.urandom(size + 160) * at_once, 4, 0
    descriptor = os.open(root / "raw", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, 512 * MIB)
    os.fsync(descriptor)
    begin, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        os.pwrite(descriptor, records, done * len(records) % (256 * MIB))
        os.fdatasync(descriptor)
        done += 1
    return _rate(done * at_once, begin, cpu)


PARTS: dict[str, Callable[..., Any]] = {
    part.__name__: part
    for part in (append_async, append_sync, read_hot, made, made_and_crashed, opening, raw_writes, raw_syncs)
}


# --------------------------------------------------------------------------------------------------- the run


class Bench:
    """Owner of the directory and of what missed its target."""

    def __init__(self, root: Path, gib: int, messages: int) -> None:
        self._root, self._gib, self._messages = root, gib, messages
        self.missed: list[str] = []

    def part(self, name: str, *arguments: int, root: Path | None = None) -> dict[str, float]:
        """Run it in a process of its own; in a directory of its own unless there is one."""
        directory = root or Path(tempfile.mkdtemp(dir=self._root))
        command = [sys.executable, __file__, "--part", json.dumps([name, str(directory), *arguments])]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        if root is None:
            shutil.rmtree(directory)
        figures: dict[str, float] = json.loads(said) if said else {}
        return figures

    def tell(self, what: str, figure: str, holds: bool = True) -> None:
        print(f"{what:<60} {figure}{'' if holds else '   TARGET MISSED'}", flush=True)
        if not holds:
            self.missed.append(what)

    def append(self) -> None:
        for name, size in SIZES.items():
            for what, part, *arguments in (
                ("raw pwrite, one a record", "raw_writes"),
                ("append, ASYNC_FLUSH", "append_async"),
                ("raw pwrite and fdatasync, 1 record", "raw_syncs", 1),
                ("append, SYNC_FLUSH, 1 waits", "append_sync", 1),
                ("raw pwrite and fdatasync, 64 records", "raw_syncs", 64),
                ("append, SYNC_FLUSH, 64 wait", "append_sync", 64),
            ):
                self._tell_rate(f"{name}: {what}", self.part(str(part), size, *map(int, arguments)))

    def read(self) -> None:
        for name, size in SIZES.items():
            self._tell_rate(f"{name}: read, 32 at a time", self.part("read_hot", size))

    def _tell_rate(self, what: str, figures: dict[str, float]) -> None:
        self.tell(what, f"{figures['rate']:>9,.0f} /s {figures['cpu_us']:6.1f} µs CPU each")

    def open(self) -> None:
        for what, count, size, queues, topics in (
            ("a clean store of 1,000 messages", 1000, 4096, 8, 1),
            (f"a clean store of {self._gib} GiB", self._gib * GIB // 4256, 4096, 8, 1),
            (f"a clean store with {QUEUES:,} queues", QUEUES, 128, 10, QUEUES // 10),
        ):
            with tempfile.TemporaryDirectory(dir=self._root) as directory:
                root = Path(directory)
                self.part("made", count, size, queues, topics, root=root)
                self._tell_open(f"open {what}", self.part("opening", root=root))

    def _tell_open(self, what: str, figures: dict[str, float]) -> None:
        seconds, read, anon = figures["seconds"], figures["read"] / MIB, figures["anon"] / MIB
        self.tell(what, f"{seconds:.3f} s, {read:.1f} MiB read, {anon:.0f} MiB anonymous", seconds < OPEN_LIMIT_S)

    def recover(self) -> None:
        for name, size in SIZES.items():
            with tempfile.TemporaryDirectory(dir=self._root) as directory:
                root = Path(directory)
                self.part("made_and_crashed", 2 * GIB // (size + 160), size, root=root)
                (root / "checkpoint").unlink()
                figures = self.part("opening", root=root)
                rate = figures["log"] / figures["seconds"]
                self.tell(
                    f"{name}: recover 2 GiB without a checkpoint",
                    f"{rate / 1e6:.0f} MB/s ({figures['log'] / figures['cpu'] / 1e6:.0f} by CPU time), "
                    f"{figures['anon'] / MIB:.0f} MiB anonymous",
                    rate >= RECOVER_LEAST[name],
                )
            with tempfile.TemporaryDirectory(dir=self._root) as directory:
                root = Path(directory)
                self.part("made_and_crashed", 4 * GIB // (size + 160), size, root=root)
                figures = self.part("opening", root=root)
                self.tell(
                    f"{name}: recover 4 GiB, written at full speed",
                    f"{figures['seconds']:.2f} s, {figures['read'] / MIB:.0f} MiB read",
                    figures["read"] < 3 * CHECKPOINT_BYTES,
                )

    def memory(self) -> None:
        with tempfile.TemporaryDirectory(dir=self._root) as directory:
            root = Path(directory)
            figures = self.part("made", self._messages, 20, root=root)
            anon, peak = figures["anon"], figures["peak"]
            self.tell(
                f"{self._messages:,} messages stored",
                f"{anon / MIB:.0f} MiB anonymous, at most {peak / MIB:.0f} resident, {figures['rate']:,.0f} /s",
                anon < MEMORY_LIMIT,
            )
            self._tell_open("and opened again", self.part("opening", root=root))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(__file__).parents[1] / "build" / "bench-store")
    parser.add_argument("--only", default="append,read,open,recover,memory")
    parser.add_argument("--gib", type=int, default=20)
    parser.add_argument("--messages", type=int, default=50_000_000)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        name, root, *numbers = json.loads(arguments.part)
        figures = PARTS[name](Path(root), *numbers)
        print(json.dumps(uvloop.run(figures) if asyncio.iscoroutine(figures) else figures))
        return
    arguments.dir.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.dir, arguments.gib, arguments.messages)
    for part in arguments.only.split(","):
        getattr(bench, part)()
    if bench.missed:
        raise SystemExit(f"{len(bench.missed)} targets missed")


if __name__ == "__main__":
    main()
