"""Remoting: the broker itself as operators see and keep it: settings, state, statistics, clean-ups.

Source: processor/AdminBrokerProcessor.java.
"""

from __future__ import annotations

import logging

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.broker.runtime import runtime_info
from saturnmq.kernel.errors import InvalidParameter
from saturnmq.kernel.later import Reply, after, hear
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting.bodies import KVTable, StatsData, StatsItem, encode
from saturnmq.wire.remoting.codes import ResponseCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.headers import StatsHeader

log = logging.getLogger(__name__)


class BrokerHandlers:
    """One method per request code."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def change_settings(self, command: Command, connection: RemotingConnection) -> Response:
        """Keys that nobody knows are named in the remark; Apache says nothing of them."""
        try:
            text = command.body.decode()
        except UnicodeDecodeError as error:
            raise InvalidParameter(f"the settings are no UTF-8: {error}") from None
        unknown = self._broker.settings.change(text)
        return Response(remark=f"without effect here: {', '.join(unknown)}" if unknown else None)

    def settings(self, command: Command, connection: RemotingConnection) -> Response:
        settings = self._broker.settings
        return Response(
            fields={"version": encode(settings.version).decode()},
            body=settings.text().encode(),
        )

    def runtime(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        return after(runtime_info(self._broker), lambda table: Response(body=encode(KVTable(table))))

    def stats(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, StatsHeader, strict=False)
        rates = self._broker.stats.rates(header.stats_name, header.stats_key)
        if rates is None:
            remark = f"The stats <{header.stats_name}> <{header.stats_key}> not exist"
            return Response(ResponseCode.SYSTEM_ERROR, remark)
        minute, hour, day = (StatsItem(*rate) for rate in rates)
        return Response(body=encode(StatsData(stats_minute=minute, stats_hour=hour, stats_day=day)))

    def delays(self, command: Command, connection: RemotingConnection) -> Response:
        """How far each delay level is delivered."""
        return Response(body=self._broker.delays.encode())

    def clean_queues(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """Delete the queue files that lead to no message."""
        return after(self._broker.store.clean(commit_log=False), lambda _: Response())

    def clean_log(self, command: Command, connection: RemotingConnection) -> Response:
        """Begin to delete what is expired; nobody waits for the end, which can be far."""
        hear(
            self._broker.store.clean(),
            lambda cleaned: log.info("asked to clean up: %s", cleaned),
            lambda error: log.error("asked to clean up: %s", error),
        )
        return Response()
