"""Remoting: delayed messages are taken back, and operators ask how far they are (processor/RecallMessageProcessor.java,
AdminBrokerProcessor#getTimerCheckPoint, #getTimerMetrics, #switchTimerEngine)."""

from __future__ import annotations

from saturnmq.broker.broker import Broker
from saturnmq.kernel.errors import InvalidParameter
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting.command import Command, Response


class TimerHandlers:
    """Messages for an arbitrary time, besides sending them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def check_point(self, command: Command, connection: RemotingConnection) -> Response:
        return Response(body=self._broker.timers.check_point())

    def metrics(self, command: Command, connection: RemotingConnection) -> Response:
        return Response(body=self._broker.timers.metrics.encode())

    def switch_engine(self, command: Command, connection: RemotingConnection) -> Response:
        if command.fields.get("E_T") == "F":
            return Response()
        raise InvalidParameter(
            "SaturnMQ has one timer engine, the wheel (F); the other one, RocksDB (R), is Apache's only"
        )
