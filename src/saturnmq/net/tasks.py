"""Threads for what would block the event loop, and coroutines that wait for a `Reply`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from saturnmq.kernel.later import Reply, hear

T = TypeVar("T")


async def wait_reply(reply: Reply[T]) -> T:
    """Only for the lives of daemons: requests never wait in a coroutine."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    hear(reply, future.set_result, future.set_exception)
    return await future


class ThreadBackground:
    """A `kernel.clock.Background` over a few threads. Owner: the daemon, which closes it after its last user."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, threads: int) -> None:
        self._loop = loop
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def run(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[BaseException], None]) -> None:
        def job() -> None:
            try:
                value = work()
            except BaseException as error:  # noqa: BLE001 - whatever went wrong is the owner's
                self._loop.call_soon_threadsafe(failed, error)
            else:
                self._loop.call_soon_threadsafe(done, value)

        self._executor.submit(job)

    def close(self) -> None:
        self._executor.shutdown(wait=True)
