"""Filters over properties: who may use them, and which one a retry topic has."""

from __future__ import annotations

import msgspec

from saturnmq.broker.clients import ClientTable
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.properties import RETRY_TOPIC, decode
from saturnmq.kernel.subscription import TAG, Matches, Subscription, subscribe
from saturnmq.kernel.topic import RETRY_PREFIX


def check_allowed(config: BrokerConfig, subscription: Subscription) -> None:
    """Raises SaturnError when pulls do not filter so here. Pops do, whatever the setting says, as at Apache's."""
    if subscription.expression_type != TAG and not config.enable_property_filter:
        raise SaturnError(
            f"The broker does not support consumer to filter message by {subscription.expression_type}: its operator "
            "can set enablePropertyFilter=true"
        )


def of_pull(config: BrokerConfig, clients: ClientTable, group: str, subscription: Subscription) -> Subscription:
    """What a pull of the group with this subscription takes. Raises IllegalFilter, SaturnError.

    Source: processor/PullMessageProcessor.java, filter/ExpressionForRetryMessageFilter.java
    """
    if subscription.expression_type == TAG:
        return subscription
    check_allowed(config, subscription)
    if config.filter_support_retry and subscription.topic.startswith(RETRY_PREFIX):
        return msgspec.structs.replace(subscription, matches=_of_original_topics(clients, group))
    if subscription.matches is None:
        # a heart-beat brought it, which is never refused: what is wrong is told now
        return subscribe(subscription.topic, subscription.expression, subscription.expression_type)
    return subscription


def _of_original_topics(clients: ClientTable, group: str) -> Matches:
    """Takes those messages of a retry topic that the group wants of the topics where they were first."""

    def matches(properties: bytes) -> bool:
        consumers = clients.consumer_group(group)
        topic = decode(properties).get(RETRY_TOPIC, "")
        wanted = None if consumers is None else consumers.subscriptions.get(topic)
        return wanted is None or wanted.matches is None or wanted.matches(properties)

    return matches
