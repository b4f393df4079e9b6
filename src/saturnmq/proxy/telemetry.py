"""What clients tell of themselves: Telemetry, Heartbeat, NotifyClientTermination."""

from __future__ import annotations

from functools import partial

from saturnmq.kernel.errors import InvalidParameter, NotSupported, SaturnError
from saturnmq.kernel.later import Reply, after
from saturnmq.kernel.ports import ConsumerMembership, ConsumeType, MessageModel
from saturnmq.kernel.topic import GroupConfig
from saturnmq.net.grpc_server import Call
from saturnmq.proxy.checks import (
    check_client_group,
    check_client_topic,
    client_id_of,
    header,
    parse,
    subscription_to_keep,
)
from saturnmq.proxy.codes import OK, code_of
from saturnmq.proxy.commands import Commands
from saturnmq.proxy.proxy import Proxy, existing
from saturnmq.proxy.settings import check_client_properties, complete_consumer, complete_producer
from saturnmq.wire.grpc import GrpcStatus
from saturnmq.wire.proto import rocketmq_pb2 as pb

CONSUME_TYPES = {
    pb.SIMPLE_CONSUMER: ConsumeType.ACTIVELY,
    pb.PUSH_CONSUMER: ConsumeType.PASSIVELY,
    pb.PULL_CONSUMER: ConsumeType.ACTIVELY,
}

#: of a stream that ends with an error; another code from 40000 on is the client's fault, from 50000 on ours
STATUSES = {pb.NOT_IMPLEMENTED: GrpcStatus.UNIMPLEMENTED, pb.TOO_MANY_REQUESTS: GrpcStatus.RESOURCE_EXHAUSTED}


class Telemetry:
    """Takes clients in, keeps them alive, lets them go."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._sessions = proxy.sessions

    def heartbeat(self, call: Call, request: pb.HeartbeatRequest) -> bytes:
        self._sessions.heartbeat(client_id_of(call))
        return pb.HeartbeatResponse(status=OK).SerializeToString()

    def notify_client_termination(self, call: Call, request: pb.NotifyClientTerminationRequest) -> bytes:
        """Well done even when the client was not known: it is not there afterwards."""
        self._proxy.client_ends(client_id_of(call))
        return pb.NotifyClientTerminationResponse(status=OK).SerializeToString()

    def telemetry(self, call: Call) -> None:
        """A stream that stands as long as the client does. It may say its settings again at any time; what else it says
        answers what it was asked."""
        commands = Commands(call, self._proxy.clock)

        def half_closed() -> None:
            call.finish()
            commands.close()

        call.on_message = partial(self._command, call, commands)
        call.on_half_close = half_closed
        call.on_cancel = commands.close

    def _command(self, call: Call, commands: Commands, data: bytes) -> Reply[None]:
        command = parse(pb.TelemetryCommand, data)
        if command.WhichOneof("command") != "settings":
            commands.answered(command)
            return None
        return after(self._settings(call, commands, command.settings, len(data)), partial(_tell, call))

    def _settings(self, call: Call, commands: Commands, sent: pb.Settings, size: int) -> Reply[pb.Settings]:
        """Take in what the client says of itself; answer the settings that it shall work with."""
        join = partial(self._sessions.join, client_id_of(call), header(call, b"x-mq-language"), call.peer, size)
        config = self._proxy.config
        check_client_properties(sent)
        kind = sent.WhichOneof("pub_sub")
        if kind == "publishing":
            topics = [topic.name for topic in sent.publishing.topics]
            for topic in topics:
                check_client_topic(topic)
            join(producer_groups=topics).stream = commands
            return complete_producer(sent, config)
        if kind != "subscription":
            raise InvalidParameter(
                "the settings have neither `publishing` nor `subscription`: is this a producer or a consumer?"
            )
        membership = self._membership(sent)

        def complete(found: GroupConfig | None) -> pb.Settings:
            group = existing(found, membership.group)
            join(membership=membership).stream = commands
            return complete_consumer(sent, config, group)

        return after(self._proxy.cluster.group_config(membership.group), complete)

    def _membership(self, sent: pb.Settings) -> ConsumerMembership:
        """Raises IllegalGroup, IllegalTopic, IllegalFilter, NotSupported."""
        consume_type = CONSUME_TYPES.get(sent.client_type)
        if consume_type is None:
            known = sent.client_type in pb.ClientType.values()
            name = pb.ClientType.Name(sent.client_type) if known else sent.client_type
            raise NotSupported(
                f"clients of the type {name} are not supported by this version of SaturnMQ: use a push, simple or "
                "pull consumer"
            )
        group = sent.subscription.group.name
        check_client_group(group)
        subscriptions = []
        for entry in sent.subscription.subscriptions:
            check_client_topic(entry.topic.name)
            subscriptions.append(subscription_to_keep(entry.topic.name, entry.expression, self._proxy.clock.now_ms()))
        return ConsumerMembership(
            group=group,
            consume_type=consume_type,
            message_model=MessageModel.CLUSTERING,
            subscriptions=subscriptions,
        )


def _tell(call: Call, settings: pb.Settings) -> None:
    call.send(pb.TelemetryCommand(status=OK, settings=settings).SerializeToString())


def refuse(call: Call, error: SaturnError) -> None:
    """A stream has no status of its own in RocketMQ's interface: clients look at gRPC's."""
    code = code_of(error)
    status = GrpcStatus.INVALID_ARGUMENT if code < pb.INTERNAL_ERROR else GrpcStatus.INTERNAL
    call.finish(STATUSES.get(code, status), str(error))
