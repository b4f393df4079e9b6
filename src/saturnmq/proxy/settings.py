"""What a client is told of itself: its own settings, completed with the server's.

Clients fail on settings that lack a part (Java and Go without a back-off strategy, Python without `metric`), so every
part that a client of its kind reads is set. Source: proxy/grpc/v2/common/GrpcClientSettingsManager.java.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from saturnmq.kernel.config import ProxyConfig
from saturnmq.kernel.errors import InvalidParameter
from saturnmq.kernel.host import Address
from saturnmq.kernel.topic import ExponentialRetry, GroupConfig
from saturnmq.proxy.routes import endpoints_of
from saturnmq.wire.proto import rocketmq_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

#: limits of Settings.client_properties, as the interface states them
MAX_CLIENT_PROPERTIES = 32
MAX_CLIENT_PROPERTY_VALUE = 256
MAX_CLIENT_PROPERTIES_BYTES = 4096
CLIENT_PROPERTY_KEY = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,63}\Z")

MAX_INT32 = (1 << 31) - 1
#: google/protobuf/duration.proto
MAX_DURATION_MS = 315_576_000_000_000

#: lite topics come in a later version, but Python's lite consumers refuse settings without these; Apache's defaults
LITE_SUBSCRIPTION_QUOTA = 2000
MAX_LITE_TOPIC_SIZE = 64


def check_client_properties(sent: pb.Settings) -> None:
    """Raises InvalidParameter with the limit that is broken."""
    properties = sent.client_properties
    if len(properties) > MAX_CLIENT_PROPERTIES:
        raise InvalidParameter(f"{len(properties)} client properties, the limit is {MAX_CLIENT_PROPERTIES}")
    size = 0
    for key, value in properties.items():
        if not CLIENT_PROPERTY_KEY.match(key):
            raise InvalidParameter(
                f"the client property {key[:80]!r} must be a letter, then at most 63 letters, digits or any of _ . -"
            )
        if len(value) > MAX_CLIENT_PROPERTY_VALUE:
            raise InvalidParameter(
                f"the client property {key} has {len(value)} characters, the limit is {MAX_CLIENT_PROPERTY_VALUE}"
            )
        size += len(key) + len(value.encode())
    if size > MAX_CLIENT_PROPERTIES_BYTES:
        raise InvalidParameter(f"{size} bytes of client properties, the limit is {MAX_CLIENT_PROPERTIES_BYTES}")


def complete_producer(sent: pb.Settings, config: ProxyConfig) -> pb.Settings:
    """Settings of a producer: when to retry, how large a body may be, whether to check types."""
    settings = _echo(sent, config)
    policy = settings.backoff_policy
    policy.max_attempts = config.grpc_client_producer_max_attempts
    backoff = policy.exponential_backoff
    backoff.initial.FromMilliseconds(config.grpc_client_producer_backoff_initial_millis)
    backoff.max.FromMilliseconds(config.grpc_client_producer_backoff_max_millis)
    backoff.multiplier = config.grpc_client_producer_backoff_multiplier
    publishing = settings.publishing
    publishing.max_body_size = config.max_message_size
    publishing.validate_message_type = config.enable_topic_message_type_check
    return settings


def complete_consumer(sent: pb.Settings, config: ProxyConfig, group: GroupConfig) -> pb.Settings:
    """Settings of a consumer: those of its group, how to receive, and when failed messages come back."""
    settings = _echo(sent, config)
    subscription = settings.subscription
    subscription.fifo = group.consume_message_orderly
    subscription.receive_batch_size = config.grpc_client_consumer_long_polling_batch_size
    subscription.long_polling_timeout.FromMilliseconds(config.grpc_client_consumer_max_long_polling_timeout_millis)
    subscription.lite_subscription_quota = LITE_SUBSCRIPTION_QUOTA
    subscription.max_lite_topic_size = MAX_LITE_TOPIC_SIZE
    policy = settings.backoff_policy
    policy.max_attempts = min(group.retry_max_times, MAX_INT32 - 1) + 1
    retry = group.group_retry_policy
    if retry.type == "EXPONENTIAL":
        exponential = retry.exponential_retry_policy or ExponentialRetry()
        backoff = policy.exponential_backoff
        _set(backoff.initial, exponential.initial)
        _set(backoff.max, exponential.max)
        backoff.multiplier = min(exponential.multiplier, MAX_INT32)
    else:
        policy.customized_backoff.ClearField("next")
        for wait_ms in retry.waits_ms:
            _set(policy.customized_backoff.next.add(), wait_ms)
    return settings


def _set(duration: Duration, ms: int) -> None:
    """Whatever a group is configured with, as far as a Duration can say it."""
    duration.FromMilliseconds(min(max(ms, 0), MAX_DURATION_MS))


def _echo(sent: pb.Settings, config: ProxyConfig) -> pb.Settings:
    settings = pb.Settings()
    settings.CopyFrom(sent)
    # always there: a client may refuse settings without it
    settings.metric.CopyFrom(_metric(config, sent.access_point))
    return settings


def _metric(config: ProxyConfig, access_point: pb.Endpoints) -> pb.Metric:
    """Where the client sends its metrics."""
    if config.metric_collector_mode == "off":
        return pb.Metric(on=False)
    if config.metric_collector_mode == "proxy":
        return pb.Metric(on=True, endpoints=access_point)
    return pb.Metric(on=True, endpoints=endpoints_of([Address.parse(config.metric_collector_address)]))
