"""A port that speaks Remoting."""

from __future__ import annotations

from collections.abc import Mapping

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import Limits
from saturnmq.kernel.host import Address
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.remoting_connection import Handler, RemotingConnection

__all__ = ["Handler", "RemotingConnection", "RemotingServer"]


class RemotingServer:
    """See the contract; being filled in."""

    def __init__(
        self, handlers: Mapping[int, Handler], clock: Clock, limits: Limits, metrics: Metrics, name: str
    ) -> None:
        raise NotImplementedError

    async def listen(self, host: str, port: int) -> Address:
        raise NotImplementedError

    async def close(self, drain_ms: int) -> None:
        raise NotImplementedError
