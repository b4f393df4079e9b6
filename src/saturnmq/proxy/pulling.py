"""Consumers that keep their own place: PullMessage, and where queues begin and end and groups are.

Apache's Proxy refuses these (UNIMPLEMENTED) up to 5.5.0; the interface is apache/rocketmq-apis' service.proto.
"""

from __future__ import annotations

from collections.abc import Sequence

from saturnmq.kernel import properties as props
from saturnmq.kernel.errors import IllegalOffset, InvalidParameter, NotFound, SaturnError
from saturnmq.kernel.later import Reply, after, rescue
from saturnmq.kernel.ports import Boundary, BrokerPort, PullRequest, PullResult, PullStatus
from saturnmq.kernel.subscription import Subscription
from saturnmq.kernel.topic import MessageQueue
from saturnmq.net.grpc_server import Call
from saturnmq.proxy.checks import check_client_group, check_client_id, check_client_topic, parse, subscription_of
from saturnmq.proxy.codes import OK, status_of
from saturnmq.proxy.messages import to_client
from saturnmq.proxy.proxy import Proxy
from saturnmq.proxy.receiving import ANSWER_AHEAD_MS, MAX_BATCH, MAX_UNREAD_BYTES
from saturnmq.wire import record as records
from saturnmq.wire.grpc import GrpcStatus
from saturnmq.wire.proto import rocketmq_pb2 as pb

_STATUSES = {
    PullStatus.NOT_FOUND: pb.Status(code=pb.MESSAGE_NOT_FOUND, message="no new message"),
    PullStatus.NO_MATCH: pb.Status(code=pb.MESSAGE_NOT_FOUND, message="no match message"),
    PullStatus.OFFSET_MOVED: pb.Status(
        code=pb.ILLEGAL_OFFSET,
        message="the offset is outside of the queue, or the group was sent elsewhere: go on there",
    ),
}


class Pulling:
    """Owner of the answers that wait for their clients to read."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy, self._config, self._clock = proxy, proxy.config, proxy.clock
        self.unread_bytes = 0

    def pull_message(self, call: Call, data: bytes) -> Reply[None]:
        check_client_id(call)
        request = parse(pb.PullMessageRequest, data)
        broker, queue = self._queue(request.message_queue)
        group = request.group.name
        check_client_group(group)
        wanted = subscription_of(queue.topic, request.filter_expression)
        reply = broker.pull(
            PullRequest(
                group=group,
                queue=queue,
                offset=request.offset,
                max_messages=max(1, min(request.batch_size, MAX_BATCH)),
                max_bytes=0,
                subscription=wanted,
                wait_ms=self._wait_ms(call, request),
            )
        )
        return after(reply, lambda result: _Answer(self, call, _parts(wanted, result)).go_on())

    def _wait_ms(self, call: Call, request: pb.PullMessageRequest) -> int:
        longest_ms = self._config.grpc_client_consumer_max_long_polling_timeout_millis
        if call.deadline_ms is not None:
            longest_ms = min(longest_ms, call.deadline_ms - self._clock.steady_ms() - ANSWER_AHEAD_MS)
        return max(0, min(request.long_polling_timeout.ToMilliseconds(), longest_ms))

    def refuse(self, call: Call, error: SaturnError) -> None:
        call.send(pb.PullMessageResponse(status=status_of(error)).SerializeToString())
        call.finish()

    def get_offset(self, call: Call, request: pb.GetOffsetRequest) -> Reply[bytes]:
        """A group that was never there begins where it likes: it is told so."""
        broker, queue = self._queue(request.message_queue)
        group = request.group.name
        check_client_group(group)

        def unknown(error: NotFound) -> bytes:
            return pb.GetOffsetResponse(
                status=pb.Status(code=pb.OFFSET_NOT_FOUND, message=f"the group {group} has no offset there: {error}")
            ).SerializeToString()

        def answer(offset: int) -> bytes:
            return pb.GetOffsetResponse(status=OK, offset=offset).SerializeToString()

        return rescue(lambda: after(broker.committed(group, queue, zero_if_new=False), answer), NotFound, unknown)

    def update_offset(self, call: Call, request: pb.UpdateOffsetRequest) -> Reply[bytes]:
        broker, queue = self._queue(request.message_queue)
        check_client_group(request.group.name)
        if request.offset < 0:
            raise IllegalOffset(f"the offset is {request.offset}, it must be 0 at least")
        reply = broker.commit(request.group.name, queue, request.offset)
        return after(reply, lambda _: pb.UpdateOffsetResponse(status=OK).SerializeToString())

    def query_offset(self, call: Call, request: pb.QueryOffsetRequest) -> Reply[bytes]:
        broker, queue = self._queue(request.message_queue)
        return after(
            self._bound(broker, queue, request),
            lambda offset: pb.QueryOffsetResponse(status=OK, offset=offset).SerializeToString(),
        )

    def _bound(self, broker: BrokerPort, queue: MessageQueue, request: pb.QueryOffsetRequest) -> Reply[int]:
        if request.query_offset_policy == pb.BEGINNING:
            return broker.min_offset(queue)
        if request.query_offset_policy == pb.END:
            return broker.max_offset(queue)
        if request.query_offset_policy != pb.TIMESTAMP or not request.HasField("timestamp"):
            raise InvalidParameter("the policy is none of BEGINNING and END, nor TIMESTAMP with a timestamp")
        time = request.timestamp
        return broker.offset_by_time(queue, time.seconds * 1000 + time.nanos // 1_000_000, Boundary.LOWER)

    def _queue(self, named: pb.MessageQueue) -> tuple[BrokerPort, MessageQueue]:
        check_client_topic(named.topic.name)
        broker = self._proxy.brokers.get(named.broker.name)
        if broker is None:
            raise InvalidParameter(
                f"the broker {named.broker.name[:80]!r} is not known here: ask QueryRoute for queues"
            )
        return broker, MessageQueue(named.topic.name, broker.name, named.id)


def _parts(wanted: Subscription, result: PullResult) -> Sequence[bytes]:
    """The status first, the next offset last."""
    messages = []
    for data in result.records:
        stored = records.decode(data)
        properties = props.decode(stored.properties)
        # the broker filters by hash, and two tags may share one
        if not wanted.tags or properties.get(props.TAGS) in wanted.tags:
            # in both streams a message is field 2
            messages.append(to_client(stored, properties, "", stored.reconsume_times, wanted.topic))
    status = OK if messages else _STATUSES.get(result.status, _STATUSES[PullStatus.NO_MATCH])
    return [
        pb.PullMessageResponse(status=status).SerializeToString(),
        *messages,
        pb.PullMessageResponse(next_offset=result.next_offset).SerializeToString(),
    ]


class _Answer:
    """One answer on its way, as fast as its client reads."""

    __slots__ = ("_call", "_next", "_parts", "_pulling", "_unread_bytes")

    def __init__(self, pulling: Pulling, call: Call, parts: Sequence[bytes]) -> None:
        self._pulling, self._call, self._parts, self._next = pulling, call, parts, 0
        #: what it has of `Pulling.unread_bytes`
        self._unread_bytes = 0
        call.on_writable, call.on_cancel = self.go_on, self._read

    def go_on(self) -> None:
        call = self._call
        while self._next < len(self._parts):
            if not call.writable:
                self._wait()
                return
            call.send(self._parts[self._next])
            self._next += 1
        self._read()
        call.finish()

    def _wait(self) -> None:
        if self._unread_bytes:
            return
        unread_bytes = sum(map(len, self._parts[self._next :]))
        if self._pulling.unread_bytes + unread_bytes > MAX_UNREAD_BYTES:
            self._call.finish(GrpcStatus.RESOURCE_EXHAUSTED, "too many messages wait for clients that do not read")
            return
        self._unread_bytes = unread_bytes
        self._pulling.unread_bytes += unread_bytes

    def _read(self) -> None:
        self._pulling.unread_bytes -= self._unread_bytes
        self._unread_bytes = 0
