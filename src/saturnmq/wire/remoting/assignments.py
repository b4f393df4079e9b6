"""Bodies about who reads which queues, and how: by pulling or by popping.

Sources: remoting/protocol/body/{QueryAssignment,SetMessageRequestMode,MessageRequestMode}*.java,
common/message/MessageQueueAssignment.java
"""

from __future__ import annotations

from typing import Literal

import msgspec

from saturnmq.kernel.ports import MessageModel
from saturnmq.kernel.topic import MessageQueue

RequestMode = Literal["PULL", "POP"]


class AssignmentQuestion(msgspec.Struct, rename="camel", kw_only=True):
    """QUERY_ASSIGNMENT"""

    topic: str
    consumer_group: str
    client_id: str
    strategy_name: str = ""
    message_model: MessageModel = MessageModel.CLUSTERING


class Assignment(msgspec.Struct, rename="camel"):
    """One queue of a consumer; queue id -1 is any queue of the broker."""

    message_queue: MessageQueue
    mode: RequestMode


class AssignmentAnswer(msgspec.Struct, rename="camel"):
    """None: the consumer goes on with the queues that it has."""

    message_queue_assignments: list[Assignment] | None


class GroupRequestMode(msgspec.Struct, rename="camel", kw_only=True):
    """How a group reads a topic (SET_MESSAGE_REQUEST_MODE)."""

    topic: str
    consumer_group: str
    mode: RequestMode = "PULL"
    #: of a popping consumer: how many of those that follow it share their queues with it; all do when it is less than 1
    pop_share_queue_num: int = 0


class RequestModeTable(msgspec.Struct, rename="camel"):
    """GET_ALL_MESSAGE_REQUEST_MODE, and config/messageRequestMode.json"""

    #: by topic, then group
    message_request_mode_map: dict[str, dict[str, GroupRequestMode]] = {}
