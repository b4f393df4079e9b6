"""Which queues a consumer reads, when it leaves that to its broker, and whether it pulls or pops them.

A consumer asks when the members of its group change, and every 20 s. What it is told depends on nothing but the
members, the queues and the settings at that moment, so that all members of a group are told what fits together.

Source: processor/QueryAssignmentProcessor.java, loadbalance/MessageRequestModeManager.java, and the strategies in
client/consumer/rebalance/.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from saturnmq.broker.clients import ClientTable
from saturnmq.broker.groups import GroupTable
from saturnmq.broker.jsonfile import JsonFile
from saturnmq.broker.topics import TopicTable
from saturnmq.disk.port import Disk
from saturnmq.kernel.clock import Background, Clock
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import GroupNotFound, NoPermission, SaturnError, TopicNotFound
from saturnmq.kernel.later import Reply, after, rescue
from saturnmq.kernel.ports import MessageModel, RoutePort
from saturnmq.kernel.topic import READ, RETRY_PREFIX, MessageQueue, TopicRoute
from saturnmq.wire.remoting.assignments import (
    Assignment,
    AssignmentQuestion,
    GroupRequestMode,
    RequestMode,
    RequestModeTable,
)
from saturnmq.wire.remoting.bodies import encode

log = logging.getLogger(__name__)

#: a broker is one queue to who pops from all of them
ANY_QUEUE = -1

#: queues and members, both in order, and the place of one member among them → its queues
Strategy = Callable[[Sequence[MessageQueue], int, int], Sequence[MessageQueue]]


def averagely(queues: Sequence[MessageQueue], members: int, member: int) -> Sequence[MessageQueue]:
    """Neighbours stay together; the first members have one more where it does not come out even."""
    each, more = divmod(len(queues), members)
    first = member * each + min(member, more)
    return queues[first : first + each + (member < more)]


def by_circle(queues: Sequence[MessageQueue], members: int, member: int) -> Sequence[MessageQueue]:
    """One after the other, in turn."""
    return queues[member::members]


STRATEGIES: Mapping[str, Strategy] = {"AVG": averagely, "AVG_BY_CIRCLE": by_circle}


class RequestModes:
    """Owns how groups read topics, and `config/messageRequestMode.json`."""

    def __init__(self, disk: Disk, clock: Clock, background: Background | None = None) -> None:
        self.table = RequestModeTable({})
        self._file = JsonFile(disk, clock, "messageRequestMode.json", lambda: encode(self.table), background=background)

    def load(self) -> None:
        """Raises ValueError when the file and its .bak are broken."""
        self.table = self._file.read(RequestModeTable) or self.table

    def write(self) -> Reply[None]:
        return self._file.write()

    def get(self, topic: str, group: str) -> GroupRequestMode | None:
        """None: nobody said."""
        return self.table.message_request_mode_map.get(topic, {}).get(group)

    def put(self, mode: GroupRequestMode) -> Reply[None]:
        """Answers when it is on disk."""
        self.table.message_request_mode_map.setdefault(mode.topic, {})[mode.consumer_group] = mode
        self._file.changed()
        return self._file.write()


class Assignments:
    """Balances the queues of a topic among the members of a group."""

    def __init__(
        self, config: BrokerConfig, topics: TopicTable, groups: GroupTable, clients: ClientTable, modes: RequestModes
    ) -> None:
        self._topics, self._groups, self._clients, self._modes = topics, groups, clients, modes
        #: knows the queues of other brokers too; until it is there, a topic has those of this one
        self.routes: RoutePort | None = None
        self.configure(config)

    def configure(self, config: BrokerConfig) -> None:
        """Take over what may change while the broker runs."""
        self._name, self._balances = config.broker_name, config.server_load_balancer_enable
        self._default_mode, self._default_share = (
            config.default_message_request_mode,
            config.default_pop_share_queue_num,
        )

    def set_mode(self, mode: GroupRequestMode) -> Reply[None]:
        """Raises NoPermission, TopicNotFound, GroupNotFound. Consumers notice when they ask again, within 20 s."""
        if mode.topic.startswith(RETRY_PREFIX):
            raise NoPermission("retry topic is not allowed to set mode")
        if self._topics.get(mode.topic) is None:
            raise TopicNotFound(f"topic[{mode.topic}] not exist")
        if self._groups.get(mode.consumer_group) is None:
            raise GroupNotFound("subscription group does not exist")
        return self._modes.put(mode)

    def assign(self, question: AssignmentQuestion) -> Reply[list[Assignment] | None]:
        """None: it cannot be said now, the consumer shall go on with what it has."""
        mode, share = self._mode(question.topic, question.consumer_group)

        def assigned(queues: Sequence[MessageQueue] | None) -> list[Assignment] | None:
            mine = None if queues is None else self._share(question, sorted(queues, key=_order), mode, share)
            return None if mine is None else [Assignment(queue, mode) for queue in dict.fromkeys(mine)]

        return after(self._queues(question.topic), assigned)

    def _mode(self, topic: str, group: str) -> tuple[RequestMode, int]:
        """And with how many others a popping consumer shares."""
        said = self._modes.get(topic, group)
        if said is not None:
            return said.mode, said.pop_share_queue_num
        return "PULL" if topic.startswith(RETRY_PREFIX) else self._default_mode, self._default_share

    def _queues(self, topic: str) -> Reply[Sequence[MessageQueue] | None]:
        """Those to read, of all brokers. None: nobody knows the topic."""
        routes = self.routes
        if routes is None:
            config = self._topics.get(topic)
            if config is None:
                return None
            return [MessageQueue(topic, self._name, queue_id) for queue_id in range(config.read_queue_nums)]
        found: Reply[TopicRoute | None] = rescue(lambda: routes.route(topic), SaturnError, _unknown)
        return after(found, lambda route: None if route is None else _readable(topic, route))

    def _share(
        self, question: AssignmentQuestion, queues: Sequence[MessageQueue], mode: RequestMode, share: int
    ) -> Sequence[MessageQueue] | None:
        if question.message_model is MessageModel.BROADCASTING or not self._balances:
            return queues
        group = self._clients.consumer_group(question.consumer_group)
        strategy = STRATEGIES.get(question.strategy_name)
        if group is None or not queues:
            return None
        if strategy is None:
            log.warning(
                "group %s wants its queues by %s, which is none of %s: its consumers keep what they have",
                question.consumer_group, question.strategy_name, ", ".join(STRATEGIES),
            )  # fmt: skip
            return None
        members = sorted(group.client_ids())
        if mode == "POP" and not 0 < share < len(members) - 1:
            return [MessageQueue(queue.topic, queue.broker_name, ANY_QUEUE) for queue in queues]
        if question.client_id not in members:
            return []
        member = members.index(question.client_id)
        if mode == "PULL":
            return strategy(queues, len(members), member)
        if len(members) > len(queues):
            return [queues[member % len(queues)]]
        return [
            queue
            for following in range(share + 1)
            for queue in strategy(queues, len(members), (member + following) % len(members))
        ]


def _order(queue: MessageQueue) -> tuple[str, int]:
    return queue.broker_name, queue.queue_id


def _unknown(error: SaturnError) -> None:
    log.warning("no queues are assigned: %s", error)


def _readable(topic: str, route: TopicRoute) -> list[MessageQueue]:
    return [
        MessageQueue(topic, data.broker_name, queue_id)
        for data in route.queue_datas
        if data.perm & READ
        for queue_id in range(data.read_queue_nums)
    ]
