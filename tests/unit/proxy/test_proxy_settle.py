"""AckMessage, ChangeInvisibleDuration, ForwardMessageToDeadLetterQueue."""

from __future__ import annotations

import pytest
from proxy_fakes import Grpc

from saturnmq.kernel.errors import InvalidReceiptHandle, NoSuchMessage, SaturnError, ServiceUnavailable, SystemBusy
from saturnmq.kernel.handle import ReceiptHandle, TopicKind
from saturnmq.kernel.later import Later
from saturnmq.wire.proto import rocketmq_pb2 as pb


@pytest.fixture
def client() -> Grpc:
    client = Grpc()
    client.broker.add_topic("t")
    return client


def handle(offset: int, broker: str = "broker-a", position: int = 5000, kind: TopicKind = TopicKind.NORMAL) -> str:
    return f"1 1699999990000 60000 2 {int(kind)} {broker} 3 {offset} {position}"


def acknowledge(*handles: str) -> pb.AckMessageRequest:
    entries = [pb.AckMessageEntry(message_id=f"id-{index}", receipt_handle=one) for index, one in enumerate(handles)]
    return pb.AckMessageRequest(group=pb.Resource(name="g"), topic=pb.Resource(name="t"), entries=entries)


def test_acknowledged(client: Grpc) -> None:
    response = client.ask("AckMessage", acknowledge(handle(7), handle(8)), pb.AckMessageResponse)
    ok = pb.Status(code=pb.OK, message="OK")
    assert response.status == ok
    assert list(response.entries) == [
        pb.AckMessageResultEntry(message_id="id-0", receipt_handle=handle(7), status=ok),
        pb.AckMessageResultEntry(message_id="id-1", receipt_handle=handle(8), status=ok),
    ]
    assert client.broker.settled == [("ack", 7), ("ack", 8)]


def test_every_entry_has_its_own_status(client: Grpc) -> None:
    client.broker.answers["ack"] = [None, NoSuchMessage("beyond the end of the queue")]
    handles = [handle(7), handle(8), handle(9, broker="elsewhere"), "rubbish"]
    response = client.ask("AckMessage", acknowledge(*handles), pb.AckMessageResponse)
    assert response.status.code == pb.MULTIPLE_RESULTS
    assert [entry.status.code for entry in response.entries] == [
        pb.OK,
        pb.INVALID_RECEIPT_HANDLE,
        pb.INVALID_RECEIPT_HANDLE,
        pb.INVALID_RECEIPT_HANDLE,
    ]
    assert "broker-a" in response.entries[2].status.message


def test_all_entries_are_wrong_in_one_way(client: Grpc) -> None:
    client.broker.answers["ack"] = [InvalidReceiptHandle("expired"), InvalidReceiptHandle("forged")]
    response = client.ask("AckMessage", acknowledge(handle(7), handle(8)), pb.AckMessageResponse)
    assert response.status.code == pb.INVALID_RECEIPT_HANDLE
    assert [entry.status.message for entry in response.entries] == ["expired", "forged"]


def test_nothing_to_acknowledge(client: Grpc) -> None:
    response = client.ask("AckMessage", acknowledge(), pb.AckMessageResponse)
    assert response.status.code == pb.BAD_REQUEST


def test_too_much_to_acknowledge(client: Grpc) -> None:
    response = client.ask("AckMessage", acknowledge(*["x"] * 1001), pb.AckMessageResponse)
    assert response.status.code == pb.BAD_REQUEST


def test_acknowledgements_that_wait(client: Grpc) -> None:
    first: Later[None] = Later()
    third: Later[None] = Later()
    client.broker.answers["ack"] = [first, None, third]
    answers = client.ask_later("AckMessage", acknowledge(handle(7), handle(8), handle(9)), pb.AckMessageResponse)
    third.fail(SystemBusy("busy"))
    assert not answers
    first.resolve(None)
    assert [entry.status.code for entry in answers[0].entries] == [pb.OK, pb.OK, pb.TOO_MANY_REQUESTS]


def test_names_are_checked(client: Grpc) -> None:
    request = acknowledge(handle(7))
    request.topic.name = "TBW102"
    assert client.ask("AckMessage", request, pb.AckMessageResponse).status.code == pb.ILLEGAL_TOPIC
    request = acknowledge(handle(7))
    request.group.name = "a b"
    assert client.ask("AckMessage", request, pb.AckMessageResponse).status.code == pb.ILLEGAL_CONSUMER_GROUP


# --------------------------------------------------------------------------------------------- change invisible


def change(seconds: int, text: str | None = None) -> pb.ChangeInvisibleDurationRequest:
    request = pb.ChangeInvisibleDurationRequest(
        group=pb.Resource(name="g"), topic=pb.Resource(name="t"), receipt_handle=text or handle(7)
    )
    request.invisible_duration.FromSeconds(seconds)
    return request


def test_changed(client: Grpc) -> None:
    response = client.ask("ChangeInvisibleDuration", change(15), pb.ChangeInvisibleDurationResponse)
    assert response.status.code == pb.OK
    assert client.broker.settled == [("change", 7, 15_000)]
    # what the broker decided is new, where the message is stays
    assert ReceiptHandle.decode(response.receipt_handle) == ReceiptHandle(
        start_offset=7,
        pop_ms=client.clock.now_ms(),
        invisible_ms=15_000,
        revive_queue_id=5,
        topic_kind=TopicKind.NORMAL,
        broker_name="broker-a",
        queue_id=3,
        queue_offset=7,
        commit_log_offset=5000,
    )


@pytest.mark.parametrize(("seconds", "code"), [(0, pb.OK), (43_200, pb.OK), (43_201, pb.ILLEGAL_INVISIBLE_TIME)])
def test_how_long(client: Grpc, seconds: int, code: pb.Code) -> None:
    response = client.ask("ChangeInvisibleDuration", change(seconds), pb.ChangeInvisibleDurationResponse)
    assert response.status.code == code


def test_a_failure_leaves_the_client_its_handle(client: Grpc) -> None:
    client.broker.answers["change_invisible"] = [SystemBusy("busy")]
    response = client.ask("ChangeInvisibleDuration", change(15), pb.ChangeInvisibleDurationResponse)
    assert response.status.code == pb.TOO_MANY_REQUESTS
    assert response.receipt_handle == handle(7)


# ---------------------------------------------------------------------------------------------------- dead letters


def bury(text: str) -> pb.ForwardMessageToDeadLetterQueueRequest:
    return pb.ForwardMessageToDeadLetterQueueRequest(
        group=pb.Resource(name="g"), topic=pb.Resource(name="t"), receipt_handle=text, message_id="id-1"
    )


@pytest.mark.parametrize(
    ("kind", "origin"),
    [(TopicKind.NORMAL, "t"), (TopicKind.RETRY, "%RETRY%g_t"), (TopicKind.RETRY_V2, "%RETRY%g+t")],
)
def test_buried(client: Grpc, kind: TopicKind, origin: str) -> None:
    response = client.ask(
        "ForwardMessageToDeadLetterQueue", bury(handle(7, kind=kind)), pb.ForwardMessageToDeadLetterQueueResponse
    )
    assert response.status.code == pb.OK
    assert client.broker.settled == [("renew", 7, 60_000), ("bury", 5000, -1, "id-1", origin), ("ack", 7)]


def test_it_is_acknowledged_only_when_it_is_buried(client: Grpc) -> None:
    stored: Later[None] = Later()
    client.broker.answers["send_back"] = [stored]
    answers = client.ask_later(
        "ForwardMessageToDeadLetterQueue", bury(handle(7)), pb.ForwardMessageToDeadLetterQueueResponse
    )
    assert ("ack", 7) not in client.broker.settled
    stored.resolve(None)
    assert client.broker.settled[-1] == ("ack", 7)
    assert answers[0].status.code == pb.OK


def test_it_is_not_acknowledged_when_it_cannot_be_buried(client: Grpc) -> None:
    client.broker.answers["send_back"] = [ServiceUnavailable("the disk is full")]
    response = client.ask(
        "ForwardMessageToDeadLetterQueue", bury(handle(7)), pb.ForwardMessageToDeadLetterQueueResponse
    )
    assert response.status == pb.Status(code=pb.INTERNAL_SERVER_ERROR, message="the disk is full")
    assert ("ack", 7) not in client.broker.settled


@pytest.mark.parametrize("error", [InvalidReceiptHandle("expired"), NoSuchMessage("deleted")])
@pytest.mark.parametrize("step", ["renew", "send_back", "ack"])
def test_a_delivery_that_is_over_is_not_buried_again_and_again(client: Grpc, step: str, error: SaturnError) -> None:
    """Java and Go repeat the request for ever, whatever the code says that is not OK."""
    client.broker.answers[step] = [error]
    response = client.ask(
        "ForwardMessageToDeadLetterQueue", bury(handle(7)), pb.ForwardMessageToDeadLetterQueueResponse
    )
    assert response.status.code == pb.OK
    done = [name for name, *_ in client.broker.settled]
    assert done == ["renew", "bury", "ack"][: ["renew", "send_back", "ack"].index(step) + 1]


def test_a_handle_that_does_not_say_where_the_message_is(client: Grpc) -> None:
    text = handle(7).rpartition(" ")[0]
    response = client.ask("ForwardMessageToDeadLetterQueue", bury(text), pb.ForwardMessageToDeadLetterQueueResponse)
    assert response.status.code == pb.INVALID_RECEIPT_HANDLE
