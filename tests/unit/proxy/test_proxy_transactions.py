"""Transactions of gRPC clients: the id that any Proxy ends them by, and the question what became of one."""

from __future__ import annotations

from typing import Any

import pytest
from proxy_fakes import Grpc, message

from saturnmq.kernel import properties as props
from saturnmq.kernel.errors import IllegalOperation, InvalidTransactionId
from saturnmq.kernel.handle import TransactionHandle
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.message import TRANSACTION_PREPARED, Message
from saturnmq.kernel.ports import EndTransactionRequest, Resolution, TransactionCheck
from saturnmq.wire import record
from saturnmq.wire.proto import rocketmq_pb2 as pb

HANDLE = TransactionHandle(broker_name="broker-a", half_offset=7, commit_log_offset=5000, message_id="id-1")


@pytest.fixture
def client() -> Grpc:
    client = Grpc()
    client.broker.add_topic("t", "TRANSACTION")
    return client


def send(client: Grpc, *sent: pb.Message) -> pb.SendMessageResponse:
    return client.ask("SendMessage", pb.SendMessageRequest(messages=sent), pb.SendMessageResponse)


def end(client: Grpc, transaction_id: str, **fields: object) -> pb.Status:
    request = pb.EndTransactionRequest(topic=pb.Resource(name="t"), transaction_id=transaction_id)
    for name, value in {"message_id": "id-1", "resolution": pb.COMMIT, **fields}.items():
        setattr(request, name, value)
    return client.ask("EndTransaction", request, pb.EndTransactionResponse).status


def test_a_half_message(client: Grpc) -> None:
    half = message(
        message_id="id-1", message_type=pb.TRANSACTION, orphaned_transaction_recovery_duration={"seconds": 30}
    )
    [entry] = send(client, half).entries
    assert TransactionHandle.decode(entry.transaction_id) == TransactionHandle(
        broker_name="broker-a", half_offset=1, commit_log_offset=0, message_id="id-1"
    )
    [request] = client.broker.sent
    assert request.messages[0].sys_flag == TRANSACTION_PREPARED
    assert request.producer_group == "t"
    assert request.properties.items() >= {
        "TRAN_MSG": "true", "PGROUP": "t", "CHECK_IMMUNITY_TIME_IN_SECONDS": "30",
    }.items()  # fmt: skip


@pytest.mark.parametrize(
    ("system", "code"),
    [
        ({"delivery_timestamp": {"seconds": 1}}, pb.BAD_REQUEST),
        ({"orphaned_transaction_recovery_duration": {"seconds": 3601}}, pb.BAD_REQUEST),
        ({"orphaned_transaction_recovery_duration": {"seconds": -1}}, pb.BAD_REQUEST),
    ],
)
def test_refused(client: Grpc, system: dict[str, Any], code: pb.Code) -> None:
    assert send(client, message(message_type=pb.TRANSACTION, **system)).status.code == code
    assert client.broker.sent == []


def test_half_messages_are_sent_alone(client: Grpc) -> None:
    half = message(message_type=pb.TRANSACTION)
    assert send(client, half, half).status.code == pb.MESSAGE_CORRUPTED


@pytest.mark.parametrize("source", [pb.SOURCE_CLIENT, pb.SOURCE_SERVER_CHECK])
@pytest.mark.parametrize("resolution", [Resolution.COMMIT, Resolution.ROLLBACK])
def test_ended(client: Grpc, resolution: Resolution, source: pb.TransactionSource) -> None:
    status = end(client, HANDLE.encode(), resolution=getattr(pb, resolution.name), source=source)
    assert status == pb.Status(code=pb.OK, message="OK")
    assert client.broker.ended == [
        EndTransactionRequest(
            topic="t",
            producer_group="t",
            half_offset=7,
            commit_log_offset=5000,
            resolution=resolution,
            from_check=source == pb.SOURCE_SERVER_CHECK,
            message_id="id-1",
        )
    ]


def test_what_is_not_decided_stays(client: Grpc) -> None:
    assert end(client, HANDLE.encode(), resolution=pb.TRANSACTION_RESOLUTION_UNSPECIFIED).code == pb.OK
    assert client.broker.ended == []


@pytest.mark.parametrize(
    ("transaction_id", "fields"),
    [
        ("", {}),
        ("rubbish", {}),
        (TransactionHandle(broker_name="b", half_offset=7, commit_log_offset=0, message_id="id-1").encode(), {}),
        (HANDLE.encode(), {"message_id": "id-2"}),
    ],
)
def test_an_id_of_nothing_here(client: Grpc, transaction_id: str, fields: dict[str, object]) -> None:
    assert end(client, transaction_id, **fields).code == pb.INVALID_TRANSACTION_ID
    assert client.broker.ended == []


def test_the_broker_refuses(client: Grpc) -> None:
    client.broker.answers["end_transaction"] = [InvalidTransactionId("gone"), IllegalOperation("late")]
    assert end(client, HANDLE.encode()) == pb.Status(code=pb.INVALID_TRANSACTION_ID, message="gone")
    assert end(client, HANDLE.encode()).code == pb.PRECONDITION_FAILED


def test_a_producer_is_asked_over_its_stream(client: Grpc) -> None:
    stream = client.telemetry()
    settings = pb.Settings(client_type=pb.PRODUCER)
    settings.publishing.topics.add(name="t")
    client.settings(settings, stream)
    properties = props.encode({props.UNIQUE_KEY: "id-1", "TRAN_MSG": "true", "color": "red"})
    half = Message("t", 2, b"body", properties, 1, pack(Address("10.0.0.2", 1)))
    stored = record.encode(half, queue_offset=7, commit_log_offset=5000, stored_ms=2, store_host=bytes(8))
    check = TransactionCheck(
        group="t",
        broker_name="broker-a",
        half_offset=7,
        commit_log_offset=5000,
        message_id="id-1",
        offset_message_id="",
        record=stored,
    )
    producer = client.proxy.sessions.get("client-1")
    assert producer is not None
    assert producer.check_transaction(check)
    command = pb.TelemetryCommand.FromString(stream.out[-1]).recover_orphaned_transaction_command
    assert command.transaction_id == HANDLE.encode()
    assert (command.message.topic.name, command.message.body) == ("t", b"body")
    assert command.message.system_properties.message_id == "id-1"
    assert command.message.system_properties.message_type == pb.TRANSACTION
    assert dict(command.message.user_properties) == {"color": "red"}
    stream.cancel()
    assert not producer.check_transaction(check), "there is no stream to ask over"
