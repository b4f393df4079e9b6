"""The broker's Remoting face, about who reads which queues (processor/QueryAssignmentProcessor.java)."""

from __future__ import annotations

from saturnmq.broker.broker import Broker
from saturnmq.kernel.later import Reply, after
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting.assignments import AssignmentAnswer, AssignmentQuestion, GroupRequestMode
from saturnmq.wire.remoting.bodies import decode, encode
from saturnmq.wire.remoting.command import Command, Response


class AssignmentHandlers:
    """One method per request code."""

    def __init__(self, broker: Broker) -> None:
        self._assignments, self._modes = broker.assignments, broker.modes

    def query(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        question = decode(AssignmentQuestion, command.body)
        return after(
            self._assignments.assign(question),
            lambda assignments: Response(body=encode(AssignmentAnswer(assignments))),
        )

    def set_mode(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        mode = decode(GroupRequestMode, command.body)
        return after(self._assignments.set_mode(mode), lambda _: Response())

    def modes(self, command: Command, connection: RemotingConnection) -> Response:
        return Response(body=encode(self._modes.table))
