"""Remoting: delayed messages are taken back, and operators ask how far they are (processor/RecallMessageProcessor.java,
AdminBrokerProcessor#getTimerCheckPoint, #getTimerMetrics, #switchTimerEngine)."""

from __future__ import annotations

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import InvalidParameter
from saturnmq.kernel.host import pack
from saturnmq.kernel.later import Reply, after
from saturnmq.kernel.ports import RecallRequest
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.headers import RecallHeader


class TimerHandlers:
    """Messages for an arbitrary time, besides sending them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def recall(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, RecallHeader, strict=False)
        request = RecallRequest(
            topic=header.topic,
            handle=header.recall_handle,
            producer_group=header.producer_group,
            born_host=pack(connection.peer),
        )
        region = self._broker.config.region_id
        return after(
            self._broker.recall(request),
            lambda message_id: Response(fields={"msgId": message_id, names.MESSAGE_REGION: region}),
        )

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
