"""Remoting: consumer groups as operators make, see and delete them (processor/AdminBrokerProcessor.java)."""

from __future__ import annotations

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.broker.paging import page
from saturnmq.kernel.errors import GroupNotFound
from saturnmq.kernel.later import Reply, after, gather
from saturnmq.kernel.topic import GroupConfig
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting.bodies import (
    GroupConfigs,
    GroupConfigTable,
    GroupForbidden,
    GroupList,
    TopicList,
    decode,
    encode,
)
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.headers import (
    DeleteGroupHeader,
    DeleteGroupsBody,
    ForbidHeader,
    GroupHeader,
    GroupPageHeader,
    TopicHeader,
)


class GroupHandlers:
    """One method per request code."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._groups, self._offsets = broker, broker.groups, broker.offsets

    def put(self, command: Command, connection: RemotingConnection) -> Response:
        self._groups.alter([decode(GroupConfig, command.body)])
        return Response()

    def put_all(self, command: Command, connection: RemotingConnection) -> Response:
        self._groups.alter(decode(GroupConfigs, command.body).group_config_list)
        return Response()

    def get(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, GroupHeader, strict=False)
        group = self._groups.get(header.group)
        if group is None:
            raise GroupNotFound("No group in this broker")
        return Response(body=encode(group))

    def get_all(self, command: Command, connection: RemotingConnection) -> Response:
        """All of them, or a page in the order of their names; another data version begins at the first page again."""
        header = msgspec.convert(command.fields, GroupPageHeader, strict=False)
        groups, version, forbidden = self._groups.configs, self._groups.version, self._groups.forbidden
        table = dict(groups)
        if header != GroupPageHeader():
            size = self._broker.config.split_metadata_size
            if header.max_group_num is not None:
                size = min(size, header.max_group_num)
            table = page(groups, version, header.data_version, header.group_seq, size)
            forbidden = {name: topics for name, topics in forbidden.items() if name in table}
        body = GroupConfigTable(
            subscription_group_table=table,
            forbidden_table={name: dict(topics) for name, topics in forbidden.items()},
            data_version=version,
        )
        return Response(fields={"totalGroupNum": str(len(groups))}, body=encode(body))

    def delete(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, DeleteGroupHeader, strict=False)
        deleted = self._broker.delete_group(header.group_name, offsets_too=header.clean_offset)
        return after(deleted, lambda _: Response())

    def delete_all(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        body = decode(DeleteGroupsBody, command.body)
        deleted = [self._broker.delete_group(group, offsets_too=body.clean_offset) for group in body.group_name_list]
        return after(gather(deleted), lambda _: Response())

    def forbid(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, ForbidHeader, strict=False)
        if header.readable is not None:
            self._groups.forbid(header.group, header.topic, readable=header.readable)
        readable = self._groups.may_read(header.group, header.topic)
        return Response(remark="", body=encode(GroupForbidden(header.group, header.topic, readable)))

    def consumers_of(self, command: Command, connection: RemotingConnection) -> Response:
        """The groups that are connected for a topic, or were."""
        header = msgspec.convert(command.fields, TopicHeader, strict=False)
        groups = self._broker.clients.consumers_of(header.topic) | self._offsets.groups_of(header.topic)
        return Response(body=encode(GroupList(sorted(groups))))

    def topics_of(self, command: Command, connection: RemotingConnection) -> Response:
        """The topics that a group committed offsets of."""
        header = msgspec.convert(command.fields, GroupHeader, strict=False)
        return Response(body=encode(TopicList(sorted(self._offsets.topics_of(header.group)), str(connection.local))))
