"""`--workers N`: one process accepts for N that serve.

The parent passes each connection to the worker that has the fewest, starts workers that died anew, and answers for all
of them over HTTP. A worker is the same command with a hidden option; it knows nothing of the others.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections import deque
from collections.abc import Callable

from saturnmq.daemons.options import Options
from saturnmq.daemons.processes import (
    DEFAULT_PROXY_HTTP_PORT,
    DRAIN_MS,
    Daemon,
    StartError,
    explained,
    shared_listeners,
)
from saturnmq.kernel import configfile
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import ProxyConfig
from saturnmq.kernel.later import Later, Reply, after, gather
from saturnmq.kernel.metrics import together
from saturnmq.net.accepting import Acceptor
from saturnmq.net.grpc_server import LAST_WORDS_MS
from saturnmq.net.passing import ASK, ASK_METRICS, Outlet, Report

logger = logging.getLogger("saturnmq")

#: between questions how a worker is, milliseconds
ASK_MS = 1_000
#: a worker that did not answer for so long gets no connections: it is stopped, or stuck
SILENT_MS = 3_000
#: a worker that lived shorter than this is started again no sooner than after this, milliseconds
RESTART_MS = 1_000
#: what a worker may take to end beyond the time that its requests have
GRACE_MS = LAST_WORDS_MS + 2_000
NOTHING = Report(0, 0, "")


class Worker:
    """One place for a worker, whose process may be another one each time. Owner: Workers."""

    def __init__(self, number: int, clock: Clock) -> None:
        self.number, self._clock = number, clock
        self.process: asyncio.subprocess.Process | None = None
        #: whether its first process came to serve
        self.started: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._outlet: Outlet | None = None
        self._report = NOTHING
        self._passed = 0
        self._heard_ms = 0
        self._metrics: list[Later[str]] = []

    @property
    def load(self) -> int:
        """Connections: those that it reported, and those that it was passed since."""
        return self._report.connections + self._passed - self._report.taken

    @property
    def silent(self) -> bool:
        """It is not there, stopped or stuck."""
        return self._outlet is None or self._clock.steady_ms() - self._heard_ms > SILENT_MS

    @property
    def trouble(self) -> str:
        return f"worker {self.number} does not answer" if self.silent else self._report.trouble

    async def live(self, command: list[str], heard: Callable[[], None]) -> int:
        """From the start of a process to its end; the exit status. `heard`: it said something."""
        outlet = Outlet()
        descriptors = outlet.inheritance()
        try:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                f"--worker={self.number}:{descriptors[0]}:{descriptors[1]}",
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C is for the parent
            )
        except OSError as error:
            outlet.close()
            return self._ended(error.errno or -1)
        self._passed = 0
        async for report in outlet.reports():
            self._outlet, self._report, self._heard_ms = outlet, report, self._clock.steady_ms()
            if not self.started.done():
                self.started.set_result(True)
            if report.metrics is not None:
                self._show(report.metrics)
            heard()
        self._outlet, self._report = None, NOTHING
        self._show("")
        return self._ended(await self.process.wait())

    def _ended(self, status: int) -> int:
        if not self.started.done():
            self.started.set_result(False)
        return status

    def take(self, accepted: socket.socket, listener: int) -> bool:
        assert self._outlet is not None, "only workers that are there are given connections"
        taken = self._outlet.pass_on(accepted, listener)
        self._passed += taken
        return taken

    def ask(self) -> None:
        """How are you? Who waits for the metrics of one that does not answer waits no longer."""
        if self.silent:
            self._show("")
        if self._outlet is not None:
            self._outlet.ask(ASK)

    def metrics(self) -> Reply[str]:
        """Its page; empty when it shows none."""
        if self._outlet is None or self.silent:
            return ""
        later: Later[str] = Later()
        self._metrics.append(later)
        self._outlet.ask(ASK_METRICS)
        return later

    def _show(self, page: str) -> None:
        waiting, self._metrics = self._metrics, []
        for later in waiting:
            later.resolve(page)


class Workers(Daemon):
    """The parent. Owner of the listeners, of connections that no worker takes yet, and of the workers."""

    def __init__(self, kind: type[Daemon], options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.name, self.configs = kind.name, kind.configs
        super().__init__(options, loop)
        self._workers = [Worker(number, self.clock) for number in range(1, options.workers + 1)]
        self._lives: dict[Worker, asyncio.Task[None]] = {}
        self._acceptors: list[Acceptor] = []
        #: number of the listener, and what came through it
        self._waiting: deque[tuple[int, socket.socket]] = deque()
        self._stopping = False
        self._restarts = self.metrics.counter("saturnmq_worker_restarts_total", "Workers that ended and were replaced")
        self._restarts.add((), 0)
        self.metrics.gauge(
            "saturnmq_workers", "Workers that answer", lambda: sum(not worker.silent for worker in self._workers)
        )

    async def start(self) -> None:
        config = configfile.convert(self.values, ProxyConfig)
        self.bind_http(DEFAULT_PROXY_HTTP_PORT)
        for listener, (name, default_port) in enumerate(shared_listeners(config).items()):
            await self._listen(listener, name, default_port)
        ports = [f"--{name.replace('_', '-')}-port={address.port}" for name, address in self.endpoints.items()]
        command = [sys.executable, *sys.orig_argv[1:], *ports]
        self.opened.push_async_callback(self._stop)
        for some in (self._workers[:1], self._workers[1:]):  # the first makes the certificate that all of them have
            for worker in some:
                self._lives[worker] = asyncio.create_task(self._keep(worker, command), name=f"worker {worker.number}")
            for worker in some:
                if not await worker.started:
                    raise StartError(f"worker {worker.number} did not start; what it said stands above")
        self._ask()

    async def _listen(self, listener: int, name: str, default_port: int) -> None:
        acceptor = Acceptor(self.clock, lambda accepted, _: self._came(listener, accepted))
        acceptor.pause()
        self._acceptors.append(acceptor)
        self.opened.callback(acceptor.close)
        wanted = self.wanted(name, default_port)
        with explained(name, wanted):
            self.endpoints[name] = await acceptor.listen(wanted.host, wanted.port)

    def trouble(self) -> str:
        """One worker that is ready is enough."""
        troubles = [worker.trouble for worker in self._workers]
        return "; ".join(dict.fromkeys(troubles)) if all(troubles) else ""

    def page(self) -> Reply[str]:
        pages = gather([worker.metrics() for worker in self._workers])
        names = [str(worker.number) for worker in self._workers]
        own = "".join(self.metrics.lines())
        return after(pages, lambda pages: own + together("worker", dict(zip(names, pages, strict=True))))

    def _ask(self) -> None:
        for worker in self._workers:
            worker.ask()
        if not self._stopping:
            self.clock.call_at(self.clock.now_ms() + ASK_MS, self._ask)

    # -- connections

    def _came(self, listener: int, accepted: socket.socket) -> None:
        self._waiting.append((listener, accepted))
        self._pass_on()

    def _pass_on(self) -> None:
        """What waits, each to the worker with the fewest. While none takes any, clients wait in the backlog."""
        if self._stopping:
            return
        while self._waiting:
            listener, accepted = self._waiting[0]
            there = sorted((worker for worker in self._workers if not worker.silent), key=lambda worker: worker.load)
            if not any(worker.take(accepted, listener) for worker in there):
                for acceptor in self._acceptors:
                    acceptor.pause()
                return
            self._waiting.popleft()
        for acceptor in self._acceptors:
            acceptor.resume()

    # -- processes

    async def _keep(self, worker: Worker, command: list[str]) -> None:
        while True:
            begin_ms = self.clock.steady_ms()
            status = await worker.live(command, self._pass_on)
            if self._stopping or not worker.started.result():
                return
            logger.error("worker %d ended with status %d, its connections with it: started anew", worker.number, status)
            self._restarts.add()
            await asyncio.sleep(max(0, RESTART_MS - (self.clock.steady_ms() - begin_ms)) / 1000)

    async def _stop(self) -> None:
        """Accept no more; each worker drains."""
        self._stopping = True
        for acceptor in self._acceptors:
            acceptor.close()
        for _, accepted in self._waiting:
            accepted.close()
        for worker, life in self._lives.items():
            if worker.process is None or worker.process.returncode is not None:
                life.cancel()
            else:
                worker.process.terminate()
        _, late = await asyncio.wait(self._lives.values(), timeout=(DRAIN_MS + GRACE_MS) / 1000)
        for worker, life in self._lives.items():
            if life in late and worker.process is not None:
                logger.error("worker %d does not end: killed", worker.number)
                worker.process.kill()
        await asyncio.gather(*self._lives.values(), return_exceptions=True)
