"""Receipt handles through Apache's Proxy: what a client hears of them when the Broker is ours.

The official clients keep a message's handles to themselves; here they are at hand.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
from harness.admin import Admin, RemotingConnection
from harness.servers import APACHES, start_cluster

from saturnmq.wire.proto import rocketmq_pb2 as pb

SERVICE = "/apache.rocketmq.v2.MessagingService/"
SEND_MESSAGE_V2 = 310
LEASE_S = 20
WITHIN_S = 60
METADATA = (("x-mq-client-id", "consumer"), ("x-mq-language", "PYTHON"), ("x-mq-protocol", "v2"))


class Consumer:
    """A simple consumer, message by message."""

    def __init__(self, address: str, topic: str, group: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._topic, self._group = pb.Resource(name=topic), pb.Resource(name=group)
        self._filter = pb.FilterExpression(type=pb.TAG, expression="*")
        self._commands: queue.Queue[pb.TelemetryCommand | None] = queue.Queue()
        entry = pb.SubscriptionEntry(topic=self._topic, expression=self._filter)
        self._commands.put(
            pb.TelemetryCommand(
                settings=pb.Settings(
                    client_type=pb.SIMPLE_CONSUMER,
                    user_agent=pb.UA(language=pb.PYTHON),
                    subscription=pb.Subscription(group=self._group, subscriptions=[entry]),
                )
            )
        )
        telemetry = self._channel.stream_stream(
            SERVICE + "Telemetry", pb.TelemetryCommand.SerializeToString, pb.TelemetryCommand.FromString
        )
        self._settings = telemetry(self._told(), metadata=METADATA)
        next(self._settings)

    def _told(self) -> Iterator[pb.TelemetryCommand]:
        while (command := self._commands.get()) is not None:
            yield command

    def close(self) -> None:
        self._commands.put(None)
        self._settings.cancel()
        self._channel.close()

    def receive(self, count: int) -> list[pb.Message]:
        request = pb.ReceiveMessageRequest(
            group=self._group,
            message_queue=pb.MessageQueue(topic=self._topic, permission=pb.READ_WRITE, id=-1),
            filter_expression=self._filter,
            batch_size=16,
            invisible_duration=timedelta(seconds=LEASE_S),
            long_polling_timeout=timedelta(seconds=5),
        )
        receive = self._channel.unary_stream(
            SERVICE + "ReceiveMessage", pb.ReceiveMessageRequest.SerializeToString, pb.ReceiveMessageResponse.FromString
        )
        messages: list[pb.Message] = []
        deadline = time.monotonic() + WITHIN_S
        while len(messages) < count:
            assert time.monotonic() < deadline
            answers = receive(request, metadata=METADATA, timeout=20)
            messages += [answer.message for answer in answers if answer.WhichOneof("content") == "message"]
        return messages

    def _call(self, name: str, request: Any, response: Any) -> Any:
        call = self._channel.unary_unary(SERVICE + name, type(request).SerializeToString, response.FromString)
        return call(request, metadata=METADATA, timeout=20)

    def ack_together(self, messages: list[pb.Message]) -> list[int]:
        """The codes of the answers."""
        entries = [
            pb.AckMessageEntry(
                message_id=one.system_properties.message_id, receipt_handle=one.system_properties.receipt_handle
            )
            for one in messages
        ]
        request = pb.AckMessageRequest(group=self._group, topic=self._topic, entries=entries)
        answer = self._call("AckMessage", request, pb.AckMessageResponse)
        return [int(entry.status.code) for entry in answer.entries]

    def ack(self, message: pb.Message, handle: str = "") -> int:
        """The code of the answer."""
        properties = message.system_properties
        entry = pb.AckMessageEntry(message_id=properties.message_id, receipt_handle=handle or properties.receipt_handle)
        request = pb.AckMessageRequest(group=self._group, topic=self._topic, entries=[entry])
        return int(self._call("AckMessage", request, pb.AckMessageResponse).entries[0].status.code)

    def change(self, message: pb.Message, seconds: int) -> tuple[int, str]:
        """The code of the answer, and the new handle."""
        properties = message.system_properties
        request = pb.ChangeInvisibleDurationRequest(
            group=self._group,
            topic=self._topic,
            receipt_handle=properties.receipt_handle,
            message_id=properties.message_id,
            invisible_duration=timedelta(seconds=seconds),
        )
        answer = self._call("ChangeInvisibleDuration", request, pb.ChangeInvisibleDurationResponse)
        return int(answer.status.code), answer.receipt_handle


def send(broker: str, topic: str, count: int) -> None:
    connection = RemotingConnection(broker)
    fields = {"a": "producers", "b": topic, "c": "TBW102", "d": "1", "e": "0", "f": "0", "h": "0"}
    for number in range(count):
        more = {"g": str(time.time_ns() // 1_000_000), "i": f"UNIQ_KEY\x01{number}\x02", "j": "0"}
        connection.call(SEND_MESSAGE_V2, b"%d" % number, **fields, **more, k="false", m="false")
    connection.close()


def test_through_apaches_proxy(tmp_path: Path) -> None:
    server = start_cluster(tmp_path, proxy=APACHES)
    try:
        admin = Admin(server.namesrv, server.broker)
        topic, group = admin.create_topic(queues=1), admin.create_group()
        send(server.broker, topic, 3)
        consumer = Consumer(server.grpc, topic, group)
        begin = time.monotonic()
        done, changed, late = sorted(consumer.receive(3), key=lambda message: message.system_properties.queue_offset)
        assert consumer.ack(done) == pb.OK
        assert consumer.ack(done) == pb.OK, "it may have been repeated for a lost answer"

        code, handle = consumer.change(changed, 120)
        assert code == pb.OK
        assert consumer.change(changed, 120)[0] == pb.INTERNAL_SERVER_ERROR, "Apache's Proxy tells no reason"
        assert consumer.ack(changed) == pb.INTERNAL_SERVER_ERROR
        assert consumer.ack(changed, handle) == pb.OK
        assert consumer.ack(changed, handle) == pb.OK

        time.sleep(max(0, begin + LEASE_S + 2 - time.monotonic()))
        assert consumer.ack(late) == pb.INVALID_RECEIPT_HANDLE
        [again] = consumer.receive(1)
        assert again.system_properties.delivery_attempt == 2
        assert consumer.ack(late) == pb.INVALID_RECEIPT_HANDLE
        assert consumer.ack(again) == pb.OK
        consumer.close()
        admin.close()
    finally:
        server.stop()


def test_what_our_proxy_acknowledges_in_one_request_at_apaches_broker(tmp_path: Path) -> None:
    server = start_cluster(tmp_path, broker=APACHES, proxy_flags=["--set", "enableBatchAck=true"])
    try:
        admin = Admin(server.namesrv, server.broker)
        topic, group = admin.create_topic(queues=1), admin.create_group()
        send(server.broker, topic, 4)
        consumer = Consumer(server.grpc, topic, group)
        first, kept, *others = sorted(consumer.receive(4), key=lambda message: message.system_properties.queue_offset)
        assert consumer.ack_together([first, *others]) == [pb.OK] * 3
        (again,) = consumer.receive(1)
        assert again.body == kept.body
        assert consumer.ack_together([again, again]) == [pb.OK] * 2
        consumer.close()
        admin.close()
    finally:
        server.stop()
