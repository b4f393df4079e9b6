"""A program with workers that serve one method: which of them it is."""

from __future__ import annotations

import os
import signal
from argparse import ArgumentParser
from pathlib import Path

from saturnmq.daemons import life, processes
from saturnmq.daemons.options import Options
from saturnmq.kernel.config import Limits, ProxyConfig
from saturnmq.kernel.later import Later
from saturnmq.net.grpc_server import Call, GrpcServer, Kind, Method
from saturnmq.net.remoting_server import RemotingServer


class Shared(processes.Daemon):
    """Answers its process id. `/test/Wait` answers when the worker drains, or never."""

    name = "Shared"
    configs = (ProxyConfig, Limits)

    async def start(self) -> None:
        if "refuseToStart" in self.values:
            raise processes.StartError("refused")
        waiting: list[Later[bytes]] = []

        def who(call: Call, request: bytes) -> bytes:
            return str(os.getpid()).encode()

        def drain() -> None:
            for later in waiting:
                later.resolve(b"drained")

        def wait(call: Call, request: bytes) -> Later[bytes]:
            waiting.append(Later())
            return waiting[-1]

        def fail(call: Call, request: bytes) -> bytes:
            os.kill(os.getpid(), signal.SIGKILL)
            return b""

        methods = {
            b"/test/Who": Method(Kind.UNARY, who),
            b"/test/Wait": Method(Kind.UNARY, wait),
            b"/test/Fail": Method(Kind.UNARY, fail),
        }
        self.bind_http()
        self.opened.push_async_callback(self.close_servers)
        self.opened.callback(drain)
        server = GrpcServer(methods, self.clock, self.limits, self.metrics, None)
        remoting = RemotingServer({}, self.clock, self.limits, self.metrics, "proxy", server)
        await self.listen("proxy_remoting", remoting, 0)
        await self.listen("grpc", server, 0)


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--worker", type=lambda text: tuple(map(int, text.split(":"))))
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--proxy-remoting-port", type=int, default=0)
    parser.add_argument("--http-port", type=int, default=0)
    parser.add_argument("--ready-file", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    given = vars(parser.parse_args())
    ports = {name: given.pop(f"{name}_port") for name in ("grpc", "proxy_remoting", "http")}
    processes.DAEMONS["shared"] = Shared  # type: ignore[index]
    life.main("shared", Options(ports=ports, **given))


if __name__ == "__main__":
    main()
