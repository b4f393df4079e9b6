"""The broker's Remoting face: request code → method, and header fields ↔ the kernel's terms.

What clients ask is in `wire.remoting.requests` and `poprequests`, which a Proxy's port serves too. What is refused here
is what only this protocol can get wrong; everything else is the broker's. A header field that is missing or no number
escapes as msgspec.ValidationError, which the connection answers with the name of the field.
"""

from __future__ import annotations

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.broker.remoting_assignment import AssignmentHandlers
from saturnmq.broker.remoting_broker import BrokerHandlers
from saturnmq.broker.remoting_clients import ClientHandlers
from saturnmq.broker.remoting_groups import GroupHandlers
from saturnmq.broker.remoting_offsets import OffsetHandlers
from saturnmq.broker.remoting_pop import PopHandlers
from saturnmq.broker.remoting_progress import ProgressHandlers
from saturnmq.broker.remoting_query import QueryHandlers
from saturnmq.broker.remoting_relay import RelayHandlers
from saturnmq.broker.remoting_timers import TimerHandlers
from saturnmq.broker.remoting_topics import TopicHandlers
from saturnmq.broker.remoting_transactions import TransactionHandlers
from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import NoPermission, SubscriptionOutdated, SubscriptionUnknown
from saturnmq.kernel.later import Reply
from saturnmq.kernel.ports import (
    BrokerPort,
    MessageModel,
)
from saturnmq.kernel.subscription import Subscription
from saturnmq.net.remoting_connection import Handler, RemotingConnection
from saturnmq.wire.remoting.codes import RequestCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.headers import (
    PullHeader,
    SendHeader,
    SendHeaderV2,
)
from saturnmq.wire.remoting.poprequests import PopRequests
from saturnmq.wire.remoting.requests import MemberRequests, PullRequests, QueueRequests, SendRequests, send_request


class _Itself:
    """A broker serves with itself, whomever a request names."""

    def __init__(self, broker: BrokerPort) -> None:
        self._broker = broker

    def named(self, name: str | None) -> BrokerPort:
        return self._broker


def table(broker: Broker) -> dict[int, Handler]:
    """What both ports of a broker serve; the VIP port is for clients that keep their sends on a port of its own."""
    config, brokers = broker.config, _Itself(broker)
    sends = SendRequests(
        brokers, {names.MESSAGE_REGION: config.region_id, names.TRACE_ON: str(config.trace_on).lower()}
    )
    messages, queues, members = MessageHandlers(broker, sends), QueueRequests(brokers), MemberRequests(broker)
    pulls, pops, looks = PullRequests(brokers, messages.wanted), PopRequests(brokers), PopHandlers(broker)
    clients, offsets, assignments = ClientHandlers(broker), OffsetHandlers(broker), AssignmentHandlers(broker)
    topics, groups, state = TopicHandlers(broker), GroupHandlers(broker), BrokerHandlers(broker)
    queries, progress, relay = QueryHandlers(broker), ProgressHandlers(broker), RelayHandlers(broker)
    timers, transactions = TimerHandlers(broker), TransactionHandlers(broker)
    return {
        RequestCode.SEND_MESSAGE: sends.send,
        RequestCode.SEND_MESSAGE_V2: sends.send_v2,
        RequestCode.SEND_BATCH_MESSAGE: sends.send_v2,
        RequestCode.SEND_REPLY_MESSAGE: messages.reply,
        RequestCode.SEND_REPLY_MESSAGE_V2: messages.reply_v2,
        RequestCode.PULL_MESSAGE: pulls.pull,
        RequestCode.LITE_PULL_MESSAGE: pulls.pull,
        RequestCode.CONSUMER_SEND_MSG_BACK: sends.send_back,
        RequestCode.QUERY_MESSAGE: queries.by_key,
        RequestCode.VIEW_MESSAGE_BY_ID: queries.by_position,
        RequestCode.QUERY_CONSUME_QUEUE: queries.consume_queue,
        RequestCode.QUERY_CONSUMER_OFFSET: queues.committed,
        RequestCode.UPDATE_CONSUMER_OFFSET: queues.commit,
        RequestCode.SEARCH_OFFSET_BY_TIMESTAMP: queues.by_time,
        RequestCode.GET_MAX_OFFSET: queues.largest,
        RequestCode.GET_MIN_OFFSET: queues.smallest,
        RequestCode.GET_EARLIEST_MSG_STORETIME: offsets.earliest_stored,
        RequestCode.GET_ALL_CONSUMER_OFFSET: offsets.all,
        RequestCode.INVOKE_BROKER_TO_RESET_OFFSET: offsets.reset,
        RequestCode.CLONE_GROUP_OFFSET: offsets.clone,
        RequestCode.QUERY_CORRECTION_OFFSET: offsets.corrections,
        RequestCode.GET_CONSUME_STATS: progress.of_group,
        RequestCode.GET_BROKER_CONSUME_STATS: progress.of_all,
        RequestCode.QUERY_CONSUME_TIME_SPAN: progress.time_spans,
        RequestCode.HEART_BEAT: clients.heartbeat,
        RequestCode.UNREGISTER_CLIENT: clients.unregister,
        RequestCode.GET_CONSUMER_LIST_BY_GROUP: members.ids,
        RequestCode.GET_PRODUCER_CONNECTION_LIST: clients.producers,
        RequestCode.GET_ALL_PRODUCER_INFO: clients.all_producers,
        RequestCode.GET_CONSUMER_CONNECTION_LIST: members.connections,
        RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER: clients.subscription,
        RequestCode.GET_CONSUMER_RUNNING_INFO: relay.running_info,
        RequestCode.CONSUME_MESSAGE_DIRECTLY: relay.consume,
        RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS: relay.positions,
        RequestCode.CHECK_CLIENT_CONFIG: clients.check_client,
        RequestCode.LOCK_BATCH_MQ: queues.lock,
        RequestCode.UNLOCK_BATCH_MQ: queues.unlock,
        RequestCode.RECALL_MESSAGE: sends.recall,
        RequestCode.END_TRANSACTION: sends.end_transaction,
        RequestCode.RESUME_CHECK_HALF_MESSAGE: transactions.resume_check,
        RequestCode.GET_TIMER_CHECK_POINT: timers.check_point,
        RequestCode.GET_TIMER_METRICS: timers.metrics,
        RequestCode.SWITCH_TIMER_ENGINE: timers.switch_engine,
        RequestCode.POP_MESSAGE: pops.pop,
        RequestCode.ACK_MESSAGE: pops.ack,
        RequestCode.BATCH_ACK_MESSAGE: pops.batch_ack,
        RequestCode.CHANGE_MESSAGE_INVISIBLETIME: pops.change_invisible,
        RequestCode.NOTIFICATION: pops.notification,
        RequestCode.PEEK_MESSAGE: looks.peek,
        RequestCode.POLLING_INFO: looks.polling,
        RequestCode.QUERY_ASSIGNMENT: assignments.query,
        RequestCode.SET_MESSAGE_REQUEST_MODE: assignments.set_mode,
        RequestCode.GET_ALL_MESSAGE_REQUEST_MODE: assignments.modes,
        RequestCode.POP_ROLLBACK: looks.roll_back,
        RequestCode.UPDATE_AND_CREATE_TOPIC: topics.put,
        RequestCode.UPDATE_AND_CREATE_TOPIC_LIST: topics.put_all,
        RequestCode.UPDATE_AND_CREATE_STATIC_TOPIC: topics.put_static,
        RequestCode.GET_TOPIC_CONFIG: topics.get,
        RequestCode.GET_ALL_TOPIC_CONFIG: topics.get_all,
        RequestCode.GET_TOPIC_STATS_INFO: topics.stats,
        RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER: topics.system_topics,
        RequestCode.DELETE_TOPIC_IN_BROKER: topics.delete,
        RequestCode.DELETE_TOPIC_IN_BROKER_LIST: topics.delete_all,
        RequestCode.CLEAN_UNUSED_TOPIC: topics.clean_unused,
        RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP: groups.put,
        RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST: groups.put_all,
        RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG: groups.get,
        RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG: groups.get_all,
        RequestCode.DELETE_SUBSCRIPTIONGROUP: groups.delete,
        RequestCode.DELETE_SUBSCRIPTION_GROUP_LIST: groups.delete_all,
        RequestCode.UPDATE_AND_GET_GROUP_FORBIDDEN: groups.forbid,
        RequestCode.QUERY_TOPIC_CONSUME_BY_WHO: groups.consumers_of,
        RequestCode.QUERY_TOPICS_BY_CONSUMER: groups.topics_of,
        RequestCode.UPDATE_BROKER_CONFIG: state.change_settings,
        RequestCode.GET_BROKER_CONFIG: state.settings,
        RequestCode.GET_BROKER_RUNTIME_INFO: state.runtime,
        RequestCode.VIEW_BROKER_STATS_DATA: state.stats,
        RequestCode.GET_ALL_DELAY_OFFSET: state.delays,
        RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE: state.clean_queues,
        RequestCode.DELETE_EXPIRED_COMMITLOG: state.clean_log,
    }


class MessageHandlers:
    """Answers to requests (request-reply), and what pulls want that do not say so."""

    def __init__(self, broker: Broker, sends: SendRequests) -> None:
        self._broker, self._sends = broker, sends

    def reply(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        request = send_request(msgspec.convert(command.fields, SendHeader, strict=False), command, connection)
        return self._sends.sent(self._broker.replies.reply(request))

    def reply_v2(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        request = send_request(msgspec.convert(command.fields, SendHeaderV2, strict=False), command, connection)
        return self._sends.sent(self._broker.replies.reply(request))

    def wanted(self, header: PullHeader) -> Subscription:
        """As the heart-beats of the consumer's group said."""
        name, topic = header.consumer_group, header.topic
        group = self._broker.clients.consumer_group(name)
        if group is None:
            raise SubscriptionUnknown("the consumer's group info not exist")
        config = self._broker.groups.get(name)
        if (
            config is not None
            and not config.consume_broadcast_enable
            and group.message_model is MessageModel.BROADCASTING
        ):
            raise NoPermission(f"the consumer group[{name}] can not consume by broadcast way")
        if not self._broker.groups.may_read(name, topic):
            raise NoPermission(f"the consumer group[{name}] is forbidden for topic[{topic}]")
        subscription = group.subscriptions.get(topic)
        if subscription is None:
            raise SubscriptionUnknown("the consumer's subscription not exist")
        if subscription.version < header.sub_version:
            raise SubscriptionOutdated("the consumer's subscription not latest")
        return subscription
