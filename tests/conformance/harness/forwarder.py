"""A port that leads to another port, as a container's published port does, or a load balancer."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

CHUNK_BYTES = 64 * 1024


class Forwarder:
    """Accepts on a free port and copies both ways to `target`; counts what clients sent through it.

    Between `partition` and `heal` nothing passes, and nothing is refused; `delay_s` makes the link slow.
    A load balancer says `greeting` before the client's first byte.
    Lives in a thread with an event loop of its own; use it in a `with` statement.
    """

    def __init__(self, target: str, greeting: bytes = b"") -> None:
        self._greeting = greeting
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="forwarder")
        self._copies: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        self.sent_bytes = 0
        self.delay_s = 0.0
        self._whole = asyncio.Event()
        self._whole.set()

    def __enter__(self) -> Forwarder:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def partition(self) -> None:
        self._loop.call_soon_threadsafe(self._whole.clear)

    def heal(self) -> None:
        self._loop.call_soon_threadsafe(self._whole.set)

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _stop(self) -> None:
        self._server.close()
        for copy in self._copies:
            copy.cancel()
        await asyncio.gather(*self._copies, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self._pass()
        try:
            onward_reader, onward_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        onward_writer.write(self._greeting)
        for source, sink, counted in ((reader, onward_writer, True), (onward_reader, writer, False)):
            copy = asyncio.create_task(self._copy(source, sink, counted=counted), name="forwarder copy")
            self._copies.add(copy)
            copy.add_done_callback(self._copies.discard)

    async def _pass(self) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self._whole.wait()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counted: bool) -> None:
        try:
            while data := await source.read(CHUNK_BYTES):
                await self._pass()
                if counted:
                    self.sent_bytes += len(data)
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass  # an end that resets ends the other one too
        finally:
            sink.close()
