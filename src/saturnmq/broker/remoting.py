"""The broker's Remoting face: request code → method, and header fields ↔ the kernel's terms.

What is refused here is what only this protocol can get wrong; everything else is the broker's. A header field that is
missing or no number escapes as msgspec.ValidationError, which the connection answers with the name of the field.
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
from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import (
    FlushTimeout,
    IllegalMessage,
    NoPermission,
)
from saturnmq.kernel.host import pack
from saturnmq.kernel.later import Later, Reply, after
from saturnmq.kernel.message import Message
from saturnmq.kernel.ports import (
    MessageModel,
    PullRequest,
    PullResult,
    PullStatus,
    SendBackRequest,
    SendReceipt,
    SendRequest,
)
from saturnmq.kernel.subscription import Subscription, subscribe
from saturnmq.kernel.topic import MessageQueue
from saturnmq.net.remoting_connection import Handler, RemotingConnection
from saturnmq.wire.record import decode_batch
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.headers import (
    PullHeader,
    SendBackHeader,
    SendHeader,
    SendHeaderV2,
)

#: since when clients say how often a message may be retried (MQVersion.V3_4_9)
_V3_4_9 = 121

# sysFlag bits of a pull (common/sysflag/PullSysFlag.java)
COMMIT_OFFSET = 0x1
SUSPEND = 0x2
SUBSCRIPTION = 0x4
#: a held pull where longPollingEnable is off (shortPollingTimeMills)
_SHORT_POLL_MS = 1_000

_PULL_CODES = {
    PullStatus.FOUND: ResponseCode.SUCCESS,
    PullStatus.NOT_FOUND: ResponseCode.PULL_NOT_FOUND,
    PullStatus.NO_MATCH: ResponseCode.PULL_RETRY_IMMEDIATELY,
    PullStatus.OFFSET_MOVED: ResponseCode.PULL_OFFSET_MOVED,
}


def table(broker: Broker) -> dict[int, Handler]:
    """What both ports of a broker serve; the VIP port is for clients that keep their sends on a port of its own."""
    messages, offsets = MessageHandlers(broker), OffsetHandlers(broker)
    clients, pops, assignments = ClientHandlers(broker), PopHandlers(broker), AssignmentHandlers(broker)
    topics, groups, state = TopicHandlers(broker), GroupHandlers(broker), BrokerHandlers(broker)
    queries, progress, relay = QueryHandlers(broker), ProgressHandlers(broker), RelayHandlers(broker)
    timers = TimerHandlers(broker)
    return {
        RequestCode.SEND_MESSAGE: messages.send,
        RequestCode.SEND_MESSAGE_V2: messages.send_v2,
        RequestCode.SEND_BATCH_MESSAGE: messages.send_v2,
        RequestCode.SEND_REPLY_MESSAGE: messages.reply,
        RequestCode.SEND_REPLY_MESSAGE_V2: messages.reply_v2,
        RequestCode.PULL_MESSAGE: messages.pull,
        RequestCode.LITE_PULL_MESSAGE: messages.lite_pull,
        RequestCode.CONSUMER_SEND_MSG_BACK: messages.send_back,
        RequestCode.QUERY_MESSAGE: queries.by_key,
        RequestCode.VIEW_MESSAGE_BY_ID: queries.by_position,
        RequestCode.QUERY_CONSUME_QUEUE: queries.consume_queue,
        RequestCode.QUERY_CONSUMER_OFFSET: offsets.committed,
        RequestCode.UPDATE_CONSUMER_OFFSET: offsets.commit,
        RequestCode.SEARCH_OFFSET_BY_TIMESTAMP: offsets.by_time,
        RequestCode.GET_MAX_OFFSET: offsets.largest,
        RequestCode.GET_MIN_OFFSET: offsets.smallest,
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
        RequestCode.GET_CONSUMER_LIST_BY_GROUP: clients.consumer_ids,
        RequestCode.GET_PRODUCER_CONNECTION_LIST: clients.producers,
        RequestCode.GET_ALL_PRODUCER_INFO: clients.all_producers,
        RequestCode.GET_CONSUMER_CONNECTION_LIST: clients.consumers,
        RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER: clients.subscription,
        RequestCode.GET_CONSUMER_RUNNING_INFO: relay.running_info,
        RequestCode.CONSUME_MESSAGE_DIRECTLY: relay.consume,
        RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS: relay.positions,
        RequestCode.CHECK_CLIENT_CONFIG: clients.check_client,
        RequestCode.LOCK_BATCH_MQ: clients.lock,
        RequestCode.UNLOCK_BATCH_MQ: clients.unlock,
        RequestCode.RECALL_MESSAGE: timers.recall,
        RequestCode.GET_TIMER_CHECK_POINT: timers.check_point,
        RequestCode.GET_TIMER_METRICS: timers.metrics,
        RequestCode.SWITCH_TIMER_ENGINE: timers.switch_engine,
        RequestCode.POP_MESSAGE: pops.pop,
        RequestCode.ACK_MESSAGE: pops.ack,
        RequestCode.BATCH_ACK_MESSAGE: pops.batch_ack,
        RequestCode.CHANGE_MESSAGE_INVISIBLETIME: pops.change_invisible,
        RequestCode.NOTIFICATION: pops.notification,
        RequestCode.PEEK_MESSAGE: pops.peek,
        RequestCode.POLLING_INFO: pops.polling,
        RequestCode.QUERY_ASSIGNMENT: assignments.query,
        RequestCode.SET_MESSAGE_REQUEST_MODE: assignments.set_mode,
        RequestCode.GET_ALL_MESSAGE_REQUEST_MODE: assignments.modes,
        RequestCode.POP_ROLLBACK: pops.roll_back,
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
    """Sending, pulling, sending back."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        #: fields of every answer to a send
        self._common = {
            names.MESSAGE_REGION: broker.config.region_id,
            names.TRACE_ON: str(broker.config.trace_on).lower(),
        }

    def send(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        request = self._send_request(msgspec.convert(command.fields, SendHeader, strict=False), command, connection)
        return self._sent(self._broker.send(request))

    def send_v2(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        request = self._send_request(msgspec.convert(command.fields, SendHeaderV2, strict=False), command, connection)
        return self._sent(self._broker.send(request))

    def reply(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        request = self._send_request(msgspec.convert(command.fields, SendHeader, strict=False), command, connection)
        return self._sent(self._broker.replies.reply(request))

    def reply_v2(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        request = self._send_request(msgspec.convert(command.fields, SendHeaderV2, strict=False), command, connection)
        return self._sent(self._broker.replies.reply(request))

    def _send_request(
        self, header: SendHeader | SendHeaderV2, command: Command, connection: RemotingConnection
    ) -> SendRequest:
        born_host = pack(connection.peer)
        properties = (header.properties or "").encode()
        if header.batch:
            messages = [
                Message(
                    header.topic,
                    header.queue_id,
                    entry.body,
                    entry.properties,
                    header.born_timestamp,
                    born_host,
                    entry.flag,
                    header.sys_flag,
                    header.reconsume_times or 0,
                )
                for entry in decode_batch(command.body)
            ]
            if not messages:
                raise IllegalMessage("the batch has no messages")
        else:
            messages = [
                Message(
                    header.topic,
                    header.queue_id,
                    command.body,
                    properties,
                    header.born_timestamp,
                    born_host,
                    header.flag,
                    header.sys_flag,
                    header.reconsume_times or 0,
                )
            ]
        return SendRequest(
            producer_group=header.producer_group,
            messages=messages,
            properties=names.decode(properties),
            default_topic=header.default_topic,
            default_queue_nums=header.default_topic_queue_nums,
            max_reconsume_times=header.max_reconsume_times if command.version >= _V3_4_9 else None,
            batch=bool(header.batch),
            unit_mode=bool(header.unit_mode),
        )

    def _sent(self, reply: Reply[SendReceipt]) -> Reply[Response | None]:
        if not isinstance(reply, Later):
            return self._receipt(reply)
        answer: Later[Response | None] = Later(reply.cancel)

        def failed(error: BaseException) -> None:
            if isinstance(error, FlushTimeout) and isinstance(error.value, SendReceipt):
                # the message is in the log: clients take this for sent, and want to know where
                answer.resolve(self._receipt(error.value, ResponseCode.FLUSH_DISK_TIMEOUT, str(error)))
            else:
                answer.fail(error)

        reply.then(lambda receipt: answer.resolve(self._receipt(receipt)), failed)
        return answer

    def _receipt(self, receipt: SendReceipt, code: int = ResponseCode.SUCCESS, remark: str | None = None) -> Response:
        fields = {
            "msgId": receipt.message_id,
            "queueId": str(receipt.queue_id),
            "queueOffset": str(receipt.queue_offset),
            **self._common,
        }
        if receipt.transaction_id is not None:
            fields["transactionId"] = receipt.transaction_id
        if receipt.recall_handle is not None:
            fields["recallHandle"] = receipt.recall_handle
        return Response(code, remark, fields)

    def lite_pull(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        if not self._broker.config.lite_pull_message_enable:
            raise NoPermission(f"the broker[{self._broker.name}] for lite pull consumer is forbidden")
        return self.pull(command, connection)

    def pull(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, PullHeader, strict=False)
        subscription = self._subscription(header)
        if isinstance(subscription, Response):
            return subscription
        wait_ms = header.suspend_timeout_millis if header.sys_flag & SUSPEND else 0
        if not self._broker.config.long_polling_enable:
            wait_ms = min(wait_ms, _SHORT_POLL_MS)
        most_bytes = self._broker.config.max_transfer_bytes_on_message_in_memory
        reply = self._broker.pull(
            PullRequest(
                group=header.consumer_group,
                queue=MessageQueue(header.topic, self._broker.name, header.queue_id),
                offset=header.queue_offset,
                max_messages=header.max_msg_nums,
                max_bytes=header.max_msg_bytes or most_bytes,
                subscription=subscription,
                wait_ms=wait_ms,
                commit_offset=header.commit_offset if header.sys_flag & COMMIT_OFFSET else -1,
            )
        )
        return after(reply, self._pulled)

    def _pulled(self, result: PullResult) -> Response:
        fields = {
            "suggestWhichBrokerId": "0",
            "nextBeginOffset": str(result.next_offset),
            "minOffset": str(result.min_offset),
            "maxOffset": str(result.max_offset),
        }
        return Response(_PULL_CODES[result.status], result.status.name, fields, b"".join(result.records))

    def _subscription(self, header: PullHeader) -> Subscription | Response:
        """What the consumer wants: as the pull says, else as its group's heart-beats said."""
        name, topic = header.consumer_group, header.topic
        if header.sys_flag & SUBSCRIPTION:
            return subscribe(topic, header.subscription, header.expression_type, header.sub_version)
        group = self._broker.clients.consumer_group(name)
        if group is None:
            return Response(ResponseCode.SUBSCRIPTION_NOT_EXIST, "the consumer's group info not exist")
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
            return Response(ResponseCode.SUBSCRIPTION_NOT_EXIST, "the consumer's subscription not exist")
        if subscription.version < header.sub_version:
            return Response(ResponseCode.SUBSCRIPTION_NOT_LATEST, "the consumer's subscription not latest")
        return subscription

    def send_back(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        header = msgspec.convert(command.fields, SendBackHeader, strict=False)
        request = SendBackRequest(
            group=header.group,
            commit_log_offset=header.offset,
            delay_level=header.delay_level,
            max_reconsume_times=header.max_reconsume_times if command.version >= _V3_4_9 else None,
            origin_message_id=header.origin_msg_id,
            origin_topic=header.origin_topic,
            unit_mode=bool(header.unit_mode),
        )
        return after(self._broker.send_back(request), lambda _: Response())
