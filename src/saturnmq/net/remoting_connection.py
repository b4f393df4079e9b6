"""One TCP connection that speaks Remoting, from either end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later, Reply
from saturnmq.wire.remoting.command import Command, Response


class RemotingConnection:
    """See the contract; being filled in."""

    peer: Address
    local: Address
    on_close: list[Callable[[], None]]
    channels: dict[str, Any]

    def send_one_way(self, code: int, fields: Mapping[str, str], body: bytes = b"") -> None:
        raise NotImplementedError

    def request(self, code: int, fields: Mapping[str, str], body: bytes, timeout_ms: int) -> Later[Command]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


Handler = Callable[[Command, RemotingConnection], Reply[Response | None]]
