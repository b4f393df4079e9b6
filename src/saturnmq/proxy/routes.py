"""QueryRoute and QueryAssignment: where a topic's queues are, and at which address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from saturnmq.kernel.errors import InvalidParameter, NoPermission
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Reply, after, chain
from saturnmq.kernel.topic import READ, WRITE, GroupConfig, MessageType, QueueData
from saturnmq.net.grpc_server import Call
from saturnmq.proxy.checks import check_client_group, check_client_topic
from saturnmq.proxy.codes import OK
from saturnmq.proxy.proxy import Proxy
from saturnmq.proxy.routing import TopicView, addresses_to_tell, is_ip, parse_advertise
from saturnmq.wire.proto import rocketmq_pb2 as pb

#: that a client says it dialled; each queue of an answer has them all
MAX_ADDRESSES = 64
#: RFC 1035
MAX_HOST = 253

ACCEPTED_TYPES: Mapping[MessageType, Sequence[pb.MessageType]] = {
    MessageType.NORMAL: [pb.NORMAL],
    MessageType.FIFO: [pb.FIFO],
    MessageType.DELAY: [pb.DELAY],
    MessageType.TRANSACTION: [pb.TRANSACTION],
    MessageType.MIXED: [pb.NORMAL, pb.FIFO, pb.DELAY, pb.TRANSACTION],
}


class Routes:
    """Answers what clients ask before they connect."""

    def __init__(self, proxy: Proxy) -> None:
        """Raises ValueError when `advertise` cannot be read."""
        self._proxy = proxy
        self._advertise = parse_advertise(proxy.config.advertise)

    def query_route(self, call: Call, request: pb.QueryRouteRequest) -> Reply[bytes]:
        check_client_topic(request.topic.name)
        endpoints = self._endpoints(call, request.endpoints)
        return after(self._proxy.routing.view(request.topic.name), partial(_route, request.topic, endpoints))

    def query_assignment(self, call: Call, request: pb.QueryAssignmentRequest) -> Reply[bytes]:
        topic, group = request.topic.name, request.group.name
        check_client_topic(topic)
        check_client_group(group)
        endpoints = self._endpoints(call, request.endpoints)

        def of_view(view: TopicView) -> Reply[bytes]:
            found = self._proxy.cluster.group_config(group)
            return after(found, partial(_assignments, request.topic, endpoints, view))

        return chain(self._proxy.routing.view(topic), of_view)

    def _endpoints(self, call: Call, requested: pb.Endpoints) -> pb.Endpoints:
        if len(requested.addresses) > MAX_ADDRESSES:
            raise InvalidParameter(f"{len(requested.addresses)} addresses of this server, the limit is {MAX_ADDRESSES}")
        dialled = [Address(address.host, address.port) for address in requested.addresses]
        if any(len(address.host) > MAX_HOST for address in dialled):
            raise InvalidParameter(f"an address of this server has a host of over {MAX_HOST} characters")
        addresses = addresses_to_tell(self._advertise, dialled, call.authority, call.local)
        return endpoints_of(addresses)


def endpoints_of(addresses: Sequence[Address]) -> pb.Endpoints:
    scheme = {4: pb.IPv4, 6: pb.IPv6}.get(is_ip(addresses[0].host), pb.DOMAIN_NAME)
    return pb.Endpoints(
        scheme=scheme, addresses=[pb.Address(host=address.host, port=address.port) for address in addresses]
    )


def _route(topic: pb.Resource, endpoints: pb.Endpoints, view: TopicView) -> bytes:
    response = pb.QueryRouteResponse(status=OK)
    accepted = ACCEPTED_TYPES.get(view.message_type, [pb.MESSAGE_TYPE_UNSPECIFIED])
    for data in view.queue_datas:
        for broker_id in view.broker_ids[data.broker_name]:
            broker = pb.Broker(name=data.broker_name, id=broker_id, endpoints=endpoints)
            for queue_id, permission in enumerate(queue_permissions(data)):
                response.message_queues.add(
                    topic=topic, id=queue_id, permission=permission, broker=broker, accept_message_types=accepted
                )
    return response.SerializeToString()


def queue_permissions(data: QueueData) -> list[pb.Permission]:
    """What may be done with each queue: first those to read only, then to write only, then both
    (proxy/grpc/v2/route/RouteActivity.java)."""
    reads = data.read_queue_nums if data.perm & READ else 0
    writes = data.write_queue_nums if data.perm & WRITE else 0
    if not data.perm & (READ | WRITE):
        return [pb.NONE] * max(1, data.read_queue_nums, data.write_queue_nums)
    both = min(reads, writes)
    return [pb.READ] * (reads - both) + [pb.WRITE] * (writes - both) + [pb.READ_WRITE] * both


def _assignments(topic: pb.Resource, endpoints: pb.Endpoints, view: TopicView, group: GroupConfig | None) -> bytes:
    """Every consumer of a group gets all queues: messages are balanced, not queues. An orderly group sees them one by
    one, any other as one queue -1 for each broker."""
    response = pb.QueryAssignmentResponse(status=OK)
    orderly = group is not None and group.consume_message_orderly
    for data in view.queue_datas:
        if data.broker_name not in view.readable:
            continue
        broker = pb.Broker(name=data.broker_name, id=0, endpoints=endpoints)
        permission = pb.READ_WRITE if data.perm & WRITE else pb.READ
        for queue_id in range(data.read_queue_nums) if orderly else [-1]:
            response.assignments.add().message_queue.MergeFrom(
                pb.MessageQueue(topic=topic, id=queue_id, permission=permission, broker=broker)
            )
    if not response.assignments:
        raise NoPermission(f"the topic {view.topic} has no readable queue: give it perm 6 and a read queue")
    return response.SerializeToString()
