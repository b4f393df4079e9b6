"""The HTTP port: health, readiness, metrics. starlette and uvicorn, imported only when clients can already connect."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Reply
from saturnmq.net.tasks import wait_reply

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response

logger = logging.getLogger("saturnmq.net.http")


class HttpServer:
    """One listener. Owner: the daemon. The socket is bound first, so that its port is known before the pages are."""

    def __init__(
        self,
        metrics: Callable[[], Reply[str]],
        unready: Callable[[], str],
        advance: Callable[[int], None] | None = None,
    ) -> None:
        """`metrics` is the page, `unready` answers "" or why not. `advance` puts the server's clock forward
        (`--test-clock`), milliseconds."""
        self._metrics, self._unready, self._advance = metrics, unready, advance
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._server: uvicorn.Server | None = None
        self._closing = False

    def bind(self, host: str, port: int) -> Address:
        """Raises OSError when the port is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        self._socket = socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=both)
        return Address(*self._socket.getsockname()[:2])

    def start(self) -> None:
        """Serve from now on, as a task of this server."""
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="http")
        self._task.add_done_callback(_report)

    async def close(self) -> None:
        """Answer until now, and never again."""
        self._closing = True
        if self._server is not None:
            self._server.should_exit = self._server.force_exit = True
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._socket is not None:
            self._socket.close()

    async def _serve(self) -> None:
        # in a thread: requests that came as soon as the server was ready do not wait for it
        server = await asyncio.get_running_loop().run_in_executor(None, self._made)
        if not self._closing:
            self._server = server
            assert self._socket is not None, "bind() comes first"
            await server.serve(sockets=[self._socket])

    def _made(self) -> uvicorn.Server:
        import uvicorn  # 0.1 s
        from starlette.applications import Starlette
        from starlette.routing import Route

        class Server(uvicorn.Server):
            """Signals are the daemon's."""

            @contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        routes = [
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._page),
        ]
        if self._advance is not None:
            routes.append(Route("/test-clock/advance/{milliseconds:int}", self._advance_clock, methods=["POST"]))
        config = uvicorn.Config(
            Starlette(routes=routes),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=75,
        )
        config.load()
        return Server(config)

    async def _healthz(self, _: Request) -> Response:
        return _text("ok\n")

    async def _readyz(self, _: Request) -> Response:
        reason = self._unready()
        return _text(f"{reason}\n", 503) if reason else _text("ready\n")

    async def _page(self, _: Request) -> Response:
        return _text(await wait_reply(self._metrics()), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _advance_clock(self, request: Request) -> Response:
        assert self._advance is not None, "the route exists only with a clock to advance"
        self._advance(int(request.path_params["milliseconds"]))
        return _text("advanced\n")


def _text(content: str, status: int = 200, media_type: str = "text/plain") -> Response:
    from starlette.responses import Response

    return Response(content, status_code=status, media_type=media_type)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("the HTTP port stopped: %s", error, exc_info=error)
