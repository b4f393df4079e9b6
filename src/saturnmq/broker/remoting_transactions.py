"""Remoting: operators bring half messages back (processor/AdminBrokerProcessor.java#resumeCheckHalfMessage)."""

from __future__ import annotations

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.kernel.later import Reply, after
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.headers import ResumeCheckHeader


class TransactionHandlers:
    """Half messages, besides sending and ending them."""

    def __init__(self, broker: Broker) -> None:
        self._transactions = broker.transactions

    def resume_check(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, ResumeCheckHeader, strict=False)
        return after(self._transactions.resume(header.msg_id), lambda _: Response())
