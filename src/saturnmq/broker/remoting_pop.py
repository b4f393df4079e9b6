"""The broker's Remoting face, about pop: what operators and other brokers ask (`wire.remoting.poprequests` has what
clients ask)."""

from __future__ import annotations

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.broker.peeks import Peeked
from saturnmq.kernel.errors import GroupNotFound, TopicNotFound
from saturnmq.kernel.later import Reply, after
from saturnmq.kernel.ports import PopRequest
from saturnmq.kernel.subscription import subscribe
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting.codes import ResponseCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.headers import PeekHeader, PollingHeader
from saturnmq.wire.remoting.poprequests import MOST_MESSAGES


class PopHandlers:
    """One method per request code (processor/PeekMessageProcessor.java and its neighbours)."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def peek(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        """What a pop would take, of all that there is and whatever the group subscribes to."""
        header = msgspec.convert(command.fields, PeekHeader, strict=False)
        request = PopRequest(
            group=header.consumer_group,
            topic=header.topic,
            queue_id=header.queue_id,
            max_messages=min(header.max_msg_nums, MOST_MESSAGES),
            invisible_ms=0,
            wait_ms=0,
            subscription=subscribe(header.topic, None),
        )
        return after(self._broker.peeks.peek(request), _peeked)

    def polling(self, command: Command, connection: RemotingConnection) -> Response:
        """How many pops wait on a queue; on -1, those that wait on any."""
        header = msgspec.convert(command.fields, PollingHeader, strict=False)
        if self._broker.topics.get(header.topic) is None:
            raise TopicNotFound(f"topic[{header.topic}] not exist, apply first please!")
        if self._broker.groups.get(header.consumer_group) is None:
            raise GroupNotFound(f"subscription group [{header.consumer_group}] does not exist")
        waiting = self._broker.polls.waiting(header.topic, header.consumer_group, header.queue_id)
        return Response(fields={"pollingNum": str(waiting)})

    def roll_back(self, command: Command, connection: RemotingConnection) -> Response:
        """Move what pop keeps into the files that older brokers read: ours keeps nothing elsewhere."""
        return Response()


def _peeked(peeked: Peeked) -> Response:
    fields = {"popTime": "0", "invisibleTime": "0", "reviveQid": "0", "restNum": str(peeked.rest)}
    if not peeked.records:
        return Response(ResponseCode.PULL_NOT_FOUND, "NO_MESSAGE_IN_QUEUE", fields)
    return Response(ResponseCode.SUCCESS, "FOUND", fields, b"".join(peeked.records))
