"""The official Python client behind the line protocol of harness/clients.py."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from rocketmq import (
    ClientConfiguration,
    ConsumeResult,
    Credentials,
    FilterExpression,
    Message,
    MessageListener,
    Producer,
    PushConsumer,
    SimpleConsumer,
    TransactionChecker,
    TransactionResolution,
)
from rocketmq.grpc_protocol import FilterType, SendMessageRequest

CONCURRENT_REQUESTS = 32
RESOLUTIONS = {
    "COMMIT": TransactionResolution.COMMIT,
    "ROLLBACK": TransactionResolution.ROLLBACK,
    "UNKNOWN": TransactionResolution.TRANSACTION_RESOLUTION_UNSPECIFIED,
}


class Output:
    """One JSON object a line on stdout; owner of the stream."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line)
        with self.lock:
            print(text, flush=True)


class Listener(MessageListener):  # type: ignore[misc]
    """Reports each delivery and fails the first `failures` of every message, once it may go on."""

    def __init__(self, name: str, failures: int, *, paused: bool, output: Output) -> None:
        self.may_go_on = threading.Event()
        if not paused:
            self.may_go_on.set()
        self.name = name
        self.failures = failures
        self.output = output
        self.lock = threading.Lock()
        self.seen: Counter[str] = Counter()

    def consume(self, message: Message) -> ConsumeResult:
        with self.lock:
            self.seen[message.message_id] += 1
            failed = self.seen[message.message_id] <= self.failures
        self.output.write({"event": "delivered", "name": self.name, "failed": failed, "message": described(message)})
        self.may_go_on.wait()
        return ConsumeResult.FAILURE if failed else ConsumeResult.SUCCESS


class Checker(TransactionChecker):  # type: ignore[misc]
    """Reports what it is asked about, and says the same of all."""

    def __init__(self, name: str, resolution: str, output: Output) -> None:
        self.name, self.resolution, self.output = name, RESOLUTIONS[resolution], output

    def check(self, message: Message) -> TransactionResolution:
        self.output.write({"event": "checked", "name": self.name, "message": described(message)})
        return self.resolution


class Client:
    """The opened producers and consumers by name, and the received messages by reference."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.opened: dict[str, Any] = {}
        self.listeners: dict[str, Listener] = {}
        self.held: dict[int, Message] = {}
        self.references = itertools.count(1)
        self.requests: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "open": self.open,
            "send": self.send,
            "transact": self.transact,
            "recall": self.recall,
            "receive": self.receive,
            "ack": self.ack,
            "invisible": self.invisible,
            "resume": self.resume,
            "close": self.close,
        }

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["name"]
        configuration = ClientConfiguration(request["endpoints"], Credentials())
        tls = {"tls_enable": True} if request["tls"] else {}
        kind = FilterType.SQL if request.get("sql") else FilterType.TAG
        filters = {topic: FilterExpression(text, kind) for topic, text in request.get("subscriptions", {}).items()}
        client: Any
        match request["what"]:
            case "producer":
                checker = Checker(name, request["checks"], self.output) if "checks" in request else None
                client = Producer(configuration, request["topics"], checker=checker, **tls)
            case "simple":
                client = SimpleConsumer(
                    configuration, request["group"], filters, await_duration=request["await_ms"] // 1000, **tls
                )
            case "push":
                listener = Listener(name, request["failures"], paused=request.get("paused", False), output=self.output)
                self.listeners[name] = listener
                client = PushConsumer(configuration, request["group"], listener, filters, **tls)
            case other:
                raise ValueError(f"open what? {other}")
        client.startup()
        self.opened[name] = client
        return {"client_id": client.client_id}

    def resume(self, request: dict[str, Any]) -> dict[str, Any]:
        self.listeners[request["name"]].may_go_on.set()
        return {}

    def send(self, request: dict[str, Any]) -> dict[str, Any]:
        producer = self.opened[request["name"]]
        messages = [message_of(fields) for fields in request["messages"]]
        match request["mode"]:
            case "sync":
                receipts = [producer.send(message) for message in messages]
            case "async":
                receipts = [future.result() for future in [producer.send_async(message) for message in messages]]
            case "unchecked":
                return {"codes": [send_unchecked(producer, message) for message in messages]}
            case other:
                raise ValueError(f"send how? {other}")
        return {
            "ids": [receipt.message_id for receipt in receipts],
            "handles": [receipt.recall_handle for receipt in receipts],
        }

    def transact(self, request: dict[str, Any]) -> dict[str, Any]:
        producer = self.opened[request["name"]]
        transaction = producer.begin_transaction()
        receipt = producer.send(message_of(request["message"]), transaction)
        match request["resolution"]:
            case "COMMIT":
                transaction.commit()
            case "ROLLBACK":
                transaction.rollback()
        return {"id": receipt.message_id}

    def recall(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"id": self.opened[request["name"]].recall_message(request["topic"], request["handle"])}

    def receive(self, request: dict[str, Any]) -> dict[str, Any]:
        consumer = self.opened[request["name"]]
        messages = consumer.receive(request["max"], request["invisible_ms"] // 1000)
        return {"messages": [self.hold(message) for message in messages]}

    def hold(self, message: Message) -> dict[str, Any]:
        reference = next(self.references)
        self.held[reference] = message
        return {**described(message), "ref": reference}

    def ack(self, request: dict[str, Any]) -> dict[str, Any]:
        for reference in request["refs"]:
            self.opened[request["name"]].ack(self.held.pop(reference))
        return {}

    def invisible(self, request: dict[str, Any]) -> dict[str, Any]:
        message = self.held[request["ref"]]
        self.opened[request["name"]].change_invisible_duration(message, request["invisible_ms"] // 1000)
        return {}

    def close(self, request: dict[str, Any]) -> dict[str, Any]:
        self.opened.pop(request["name"]).shutdown()
        return {}


def message_of(fields: dict[str, Any]) -> Message:
    message = Message()
    message.topic = fields["topic"]
    message.body = base64.b64decode(fields["body"])
    if fields["tag"]:
        message.tag = fields["tag"]
    for key in fields["keys"]:
        message.keys = key  # the setter adds
    for key, value in fields["properties"].items():
        message.add_property(key, value)
    if fields["message_group"]:
        message.message_group = fields["message_group"]
    if "deliver_ms" in fields:
        message.delivery_timestamp = fields["deliver_ms"] // 1000  # this client's times are seconds
    return message


def described(message: Message) -> dict[str, Any]:
    return {
        "id": message.message_id,
        "topic": message.topic,
        "tag": message.tag,
        "keys": sorted(message.keys),
        "properties": dict(message.properties),
        "body": base64.b64encode(message.body).decode(),
        "message_group": message.message_group,
        "attempt": message.delivery_attempt,
        "corrupted": message.corrupted,
    }


def send_unchecked(producer: Producer, message: Message) -> int:
    """The status code of a send that passes by the client's own checks, through its own RPC layer."""
    request = SendMessageRequest()
    sent = request.messages.add()
    sent.topic.name = message.topic
    sent.body = message.body
    sent.user_properties.update(message.properties)
    sent.system_properties.message_id = "01" + "0" * 32
    sent.system_properties.message_type = 1
    endpoints = producer.client_configuration.rpc_endpoints
    response = producer.rpc_client.send_message_async(endpoints, request, producer.sign(), timeout=10).result()
    return int(response.status.code)


def failure(error: Exception) -> dict[str, Any]:
    code = getattr(error, "code", None)  # of an error of gRPC it is a method
    return {
        "kind": type(error).__name__,
        "code": code if isinstance(code, int) else None,
        "message": str(error),
    }


def set_event_loop() -> None:
    """Clients expect one in the thread that starts them, as the main thread of an application has."""
    asyncio.set_event_loop(asyncio.new_event_loop())


def main() -> None:
    output = Output()
    client = Client(output)

    def answer(request: dict[str, Any]) -> None:
        try:
            output.write({"id": request["id"], "ok": client.requests[request["do"]](request)})
        except Exception as error:  # noqa: BLE001 - whatever the client raises is what the test wants to see
            output.write({"id": request["id"], "error": failure(error)})

    output.write({"event": "ready", "client": f"rocketmq-python-client {version('rocketmq-python-client')}"})
    with ThreadPoolExecutor(CONCURRENT_REQUESTS, initializer=set_event_loop) as pool:
        for line in sys.stdin:
            pool.submit(answer, json.loads(line))


if __name__ == "__main__":
    main()
