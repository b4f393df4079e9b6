"""Requests to other processes that speak Remoting."""

from __future__ import annotations

from collections.abc import Mapping

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import Limits
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later
from saturnmq.kernel.metrics import Metrics
from saturnmq.wire.remoting.command import Command


class RemotingClient:
    """See the contract; being filled in."""

    def __init__(self, clock: Clock, limits: Limits, metrics: Metrics) -> None:
        raise NotImplementedError

    def request(
        self, address: Address, code: int, fields: Mapping[str, str], body: bytes, timeout_ms: int
    ) -> Later[Command]:
        raise NotImplementedError

    def one_way(self, address: Address, code: int, fields: Mapping[str, str], body: bytes = b"") -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError
