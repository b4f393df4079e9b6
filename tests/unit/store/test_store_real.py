"""The store over files of the operating system and real threads."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from store_stage import message

from saturnmq.disk.real import RealDisk, RealFile
from saturnmq.kernel.config import StoreConfig
from saturnmq.kernel.later import Later, Reply
from saturnmq.net.clock import LoopClock
from saturnmq.net.tasks import ThreadBackground
from saturnmq.store.store import Found, Store
from saturnmq.wire.record import decode

T = TypeVar("T")
CONFIG = StoreConfig(mapped_file_size_commit_log=1 << 20, flush_interval_consume_queue=20)


async def result(reply: Reply[T]) -> T:
    if not isinstance(reply, Later):
        return reply
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    reply.then(future.set_result, future.set_exception)
    return await future


async def with_store(root: Path, use: Callable[[Store], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    flusher, reader = ThreadBackground(loop, "flush", 1), ThreadBackground(loop, "read", 2)
    store = Store(RealDisk(str(root)), CONFIG, LoopClock(loop), flusher, reader)
    store.open()
    try:
        await use(store)
        await result(store.stop())
    finally:
        store.close()
        flusher.close()
        reader.close()


async def bodies(store: Store, queue_id: int = 0) -> list[bytes]:
    offset, found_bodies = 0, []
    while offset < store.max_offset("Topic", queue_id):
        found = await result(store.get("Topic", queue_id, offset, 32, 1 << 20))
        found_bodies += [decode(record, check_crc=True).body for record in found.records]
        offset = found.next_offset
    return found_bodies


def test_send_restart_read(tmp_path: Path) -> None:
    sent = [b"%d" % number * 700 for number in range(2000)]  # over several files

    async def send(store: Store) -> None:
        for start in range(0, len(sent), 50):
            replies = []
            for body in sent[start : start + 50]:
                (appended,) = store.append([message(body)])
                replies.append(store.when_durable(appended.end, None))
            await asyncio.gather(*map(result, replies))
        assert await bodies(store) == sent

    async def read(store: Store) -> None:
        assert await bodies(store) == sent
        assert store.append([message(b"next")])[0].queue_offset == len(sent)

    asyncio.run(with_store(tmp_path, send))
    assert len(list((tmp_path / "commitlog").iterdir())) > 2
    assert not (tmp_path / "abort").exists()
    asyncio.run(with_store(tmp_path, read))


def test_cold_files_are_read_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(store: Store) -> None:
        appended = store.append([message(b"x" * 5000) for _ in range(40)])
        await result(store.when_durable(appended[-1].end, None))
        monkeypatch.setattr(RealFile, "try_pread", lambda self, size, offset: None)
        reply = store.get("Topic", 0, 0, 32, 1 << 20)
        assert isinstance(reply, Later)
        found: Found = await result(reply)
        assert len(found.records) == 32

    asyncio.run(with_store(tmp_path, use))


WRITER = """
import asyncio, sys
from pathlib import Path
from store_stage import message
from test_store_real import result, with_store

async def use(store):
    number = 0
    while True:
        appended = store.append([message(b"%d" % n) for n in range(number, number + 10)])
        await result(store.when_durable(appended[-1].end, None))
        number += 10
        print(number, flush=True)

asyncio.run(with_store(Path(sys.argv[1]), use))
"""


@pytest.mark.parametrize("topic", ["..", ".", "../outside", "outside/0", "x" * 1000, "a\0b", ""])
def test_what_is_no_topic_has_no_files(tmp_path: Path, topic: str) -> None:
    """Clients ask for whatever they like."""
    (tmp_path / "outside" / "0").mkdir(parents=True)
    (tmp_path / "store" / "0").mkdir(parents=True)

    async def ask(store: Store) -> None:
        assert store.queues(topic) == []
        assert (store.min_offset(topic, 0), store.max_offset(topic, 0)) == (0, 0)
        await result(store.delete([topic]))

    asyncio.run(with_store(tmp_path / "store", ask))
    assert (tmp_path / "outside" / "0").exists()


def test_kill_and_restart(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = 0
    with process.stdout as lines:
        for line in lines:
            acknowledged = int(line)
            if acknowledged == 300:
                process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "abort").exists()

    async def read(store: Store) -> None:
        found = await bodies(store)
        assert len(found) >= acknowledged >= 300
        assert found == [b"%d" % number for number in range(len(found))]

    asyncio.run(with_store(tmp_path, read))
