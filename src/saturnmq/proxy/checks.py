"""What every RPC checks of its request: its size, who asks, and the names in it.

A client that is nobody's friend can send whatever protobuf can say. So everything that is kept, repeated or looped over
has a bound here; those of the messages themselves are settings (`messages`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from saturnmq.kernel.errors import BodyTooLarge, ClientIdRequired, IllegalFilter, IllegalGroup, IllegalTopic
from saturnmq.kernel.subscription import SQL92, TAG, Subscription, keep, subscribe
from saturnmq.kernel.topic import check_group, check_topic, is_system_group, is_system_topic
from saturnmq.net.grpc_server import Call
from saturnmq.wire.grpc import GrpcError, GrpcStatus
from saturnmq.wire.proto import rocketmq_pb2 as pb

#: a request without message bodies; settings with 10,000 topics have as much
MAX_REQUEST_BYTES = 256 * 1024
#: messages of one send, entries of one acknowledgement: official clients send one, and receive 32
MAX_ENTRIES = 1000
#: `host@pid@index@time`, and a host has up to 253
MAX_CLIENT_ID_BYTES = 512
#: of a filter; some hundred tags
MAX_EXPRESSION = 8192
#: longer filters are compiled each time: nobody fills the memory with them
CACHED_EXPRESSION = 256

FILTER_TYPES = {pb.FILTER_TYPE_UNSPECIFIED: TAG, pb.TAG: TAG, pb.SQL: SQL92}

Request = TypeVar("Request", bound=Message)


def parse(kind: type[Request], data: bytes, most_bytes: int = MAX_REQUEST_BYTES) -> Request:
    """Raises BodyTooLarge, or GrpcError when it is something else."""
    if len(data) > most_bytes:
        raise BodyTooLarge(f"the request has {len(data)} bytes, the limit is {most_bytes}")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise GrpcError(
            GrpcStatus.INVALID_ARGUMENT, f"the request is not a {kind.DESCRIPTOR.full_name}: {error}"
        ) from None


def check_client_id(call: Call) -> bytes:
    """Raises ClientIdRequired."""
    client_id = call.headers.get(b"x-mq-client-id", b"")
    if not client_id or client_id.isspace():
        raise ClientIdRequired("the header x-mq-client-id is missing or blank: every client names itself in it")
    if len(client_id) > MAX_CLIENT_ID_BYTES:
        raise ClientIdRequired(f"the client id has {len(client_id)} bytes, the limit is {MAX_CLIENT_ID_BYTES}")
    return client_id


def client_id_of(call: Call) -> str:
    """Raises ClientIdRequired."""
    return check_client_id(call).decode("utf-8", "replace")


def header(call: Call, name: bytes) -> str:
    return call.headers.get(name, b"").decode("utf-8", "replace")


@lru_cache(maxsize=4096)
def check_client_topic(topic: str) -> None:
    """Raises IllegalTopic unless a client may use a topic of this name."""
    check_topic(topic)
    if is_system_topic(topic):
        raise IllegalTopic(f"the topic {topic} is RocketMQ's own: choose another name")


@lru_cache(maxsize=4096)
def check_client_group(group: str) -> None:
    """Raises IllegalGroup unless a client may use a consumer group of this name."""
    check_group(group)
    if is_system_group(group):
        raise IllegalGroup(f"the consumer group {group} is RocketMQ's own: choose another name")


def subscription_of(topic: str, filter_expression: pb.FilterExpression) -> Subscription:
    """Raises IllegalFilter."""
    kind, text = _kind_and_text(filter_expression)
    return _compiled(topic, text, kind) if len(text) <= CACHED_EXPRESSION else subscribe(topic, text, kind)


def subscription_to_keep(topic: str, filter_expression: pb.FilterExpression, now_ms: int) -> Subscription:
    """Of the settings of a consumer, said at this time. Raises IllegalFilter, about tags: what else is wrong it is told
    when it receives, for a stream that ends says little to official clients."""
    kind, text = _kind_and_text(filter_expression)
    return keep(topic, text, kind, now_ms)


def _kind_and_text(filter_expression: pb.FilterExpression) -> tuple[str, str]:
    text = filter_expression.expression
    if len(text) > MAX_EXPRESSION:
        raise IllegalFilter(f"the filter has {len(text)} characters, the limit is {MAX_EXPRESSION}")
    return FILTER_TYPES.get(filter_expression.type, str(filter_expression.type)), text


_compiled = lru_cache(maxsize=4096)(subscribe)
