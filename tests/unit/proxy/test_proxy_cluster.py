"""Cluster mode: a Proxy that reaches its brokers over the wire."""

from __future__ import annotations

import pytest
from cluster_stage import NAMES, ClusterStage, handle_of
from proxy_fakes import message, receive_request

from saturnmq.kernel.errors import TopicNotFound
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import hear
from saturnmq.kernel.topic import GroupConfig
from saturnmq.nameserver import remoting as nameserver_remoting
from saturnmq.proxy import remoting
from saturnmq.testing.nameserver import name_server
from saturnmq.testing.offline import OfflineConnection
from saturnmq.wire.proto import rocketmq_pb2 as pb
from saturnmq.wire.remoting.bodies import ClusterInfo, encode
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.extensions import CHECKS_HANDLE, KEEP_HANDLE


@pytest.fixture
def stage() -> ClusterStage:
    stage = ClusterStage()
    stage.add_topic("t")
    stage.brokers["broker-a"].broker.groups.get("g")
    return stage


def test_there_and_back(stage: ClusterStage) -> None:
    stage.take()  # the group begins at the end
    sent = stage.send(b"x", tag="a", keys=["k"])
    assert sent.status.code == pb.OK
    assert sent.entries[0].offset == 0
    (received,) = stage.take()
    assert (received.body, received.system_properties.tag, received.topic.name) == (b"x", "a", "t")
    assert received.system_properties.message_id == sent.entries[0].message_id
    assert stage.ack(handle_of(received)) == pb.OK
    stage.clock.advance(60_000)
    assert stage.take() == []


def test_a_batch_is_one_request(stage: ClusterStage) -> None:
    request = pb.SendMessageRequest()
    for body in (b"1", b"2"):
        request.messages.add(
            topic=pb.Resource(name="t"),
            body=body,
            system_properties=pb.SystemProperties(message_id=body.decode(), message_type=pb.NORMAL),
        )
    answer = stage.unary("SendMessage", request, pb.SendMessageResponse)
    assert [entry.status.code for entry in answer.entries] == [pb.OK, pb.OK]
    assert stage.stored() == [("broker-a", b"1"), ("broker-a", b"2")]
    assert stage.network.count(RequestCode.SEND_BATCH_MESSAGE) == 1


def test_what_is_acknowledged_at_once_is_one_request_for_each_broker() -> None:
    stage = ClusterStage(brokers=2, enable_batch_ack=True)
    stage.add_topic("t")
    for number in range(8):
        stage.send(b"%d" % number)
    taken = {name: stage.take(name) for name in stage.brokers}
    request = pb.AckMessageRequest(group=pb.Resource(name="g"), topic=pb.Resource(name="t"))
    for messages in taken.values():
        for one in messages[:3]:
            request.entries.add(message_id="id", receipt_handle=handle_of(one))
    far = f"0 {stage.clock.now_ms()} 60000 0 0 broker-a 0 99999999999 0"
    request.entries.add(message_id="id", receipt_handle=far)
    answer = stage.unary("AckMessage", request, pb.AckMessageResponse)
    assert [entry.status.code for entry in answer.entries[:-1]] == [pb.OK] * 6
    assert answer.entries[-1].status.code == pb.INVALID_RECEIPT_HANDLE
    assert stage.network.count(RequestCode.BATCH_ACK_MESSAGE) == 2
    assert stage.network.count(RequestCode.ACK_MESSAGE) == 1, "of an offset that no pop has"
    assert stage.ack(handle_of(taken["broker-a"][0])) == pb.OK, "nobody hears that it was settled before"
    stage.clock.advance(60_000)
    assert stage.ack(handle_of(taken["broker-a"][3])) == pb.INVALID_RECEIPT_HANDLE, "which is expired goes alone"
    stage.network.dead |= {stage.address(name) for name in stage.brokers}
    again = stage.unary("AckMessage", request, pb.AckMessageResponse)
    assert pb.OK not in {entry.status.code for entry in again.entries}


def test_acknowledgements_go_one_by_one_where_a_broker_refuses_them_together() -> None:
    stage = ClusterStage(enable_batch_ack=True)
    stage.add_topic("t")
    stage.send()
    stage.send()
    request = pb.AckMessageRequest(group=pb.Resource(name="g"), topic=pb.Resource(name="t"))
    for taken in stage.take():
        request.entries.add(message_id="id", receipt_handle=handle_of(taken))

    def refuse(command: Command, connection: object) -> Response:
        return Response(ResponseCode.SYSTEM_ERROR, "one of them is bad")

    address = stage.address("broker-a")
    stage.network.servers[address] = {**stage.network.servers[address], RequestCode.BATCH_ACK_MESSAGE: refuse}
    assert stage.unary("AckMessage", request, pb.AckMessageResponse).status.code == pb.OK
    assert stage.network.count(RequestCode.BATCH_ACK_MESSAGE) == 1
    assert stage.network.count(RequestCode.ACK_MESSAGE) == 2


def test_a_fresh_proxy_takes_the_handles_of_another(stage: ClusterStage) -> None:
    stage.take()
    stage.send()
    (received,) = stage.take()
    stage.start_proxy()
    assert stage.ack(handle_of(received)) == pb.OK


def test_the_handle_of_a_broker_that_is_new(stage: ClusterStage) -> None:
    stage.take()
    stage.send()
    (received,) = stage.take()
    handle = handle_of(received)
    stage.clock.advance(5_000)
    elsewhere = stage.add_broker("broker-b")
    assert stage.ack(handle.replace("broker-a", "broker-b")) == pb.PROXY_TIMEOUT, "not known yet"
    assert stage.ack(handle.replace("broker-a", "broker-b")) == pb.INVALID_RECEIPT_HANDLE, "known, and not its own"
    assert elsewhere.broker.name in stage.cluster.brokers
    assert stage.ack(handle.replace("broker-a", "broker-x")) == pb.INVALID_RECEIPT_HANDLE, "asked a moment ago"
    stage.clock.advance(1_000)
    assert stage.ack(handle.replace("broker-a", "broker-x")) == pb.PROXY_TIMEOUT
    assert stage.ack(handle.replace("broker-a", "broker-x")) == pb.INVALID_RECEIPT_HANDLE
    assert stage.ack(handle) == pb.OK


def test_handles_while_no_nameserver_answers(stage: ClusterStage) -> None:
    stage.take()
    stage.send()
    (received,) = stage.take()
    stage.network.silent.add(NAMES)
    stage.start_proxy()
    assert stage.ack(handle_of(received)) == pb.PROXY_TIMEOUT, "it may be good"
    stage.network.silent.clear()
    stage.clock.advance(5_000)
    assert stage.ack(handle_of(received)) == pb.OK


def test_unknown_topics_are_asked_for_once_in_a_while(stage: ClusterStage) -> None:
    for _ in range(3):
        assert stage.send(topic="none").status.code == pb.TOPIC_NOT_FOUND
    assert stage.network.count(RequestCode.GET_ROUTEINFO_BY_TOPIC) == 1
    stage.add_topic("none")
    stage.clock.advance(1_000)
    assert stage.send(topic="none").status.code == pb.OK


def test_what_is_known_of_a_topic_is_good_for_a_while(stage: ClusterStage) -> None:
    for _ in range(3):
        assert stage.send().status.code == pb.OK
    assert stage.network.count(RequestCode.GET_ROUTEINFO_BY_TOPIC) == 1
    assert stage.network.count(RequestCode.GET_TOPIC_CONFIG) == 1
    stage.network.dead.add(NAMES)
    stage.clock.advance(250_000)
    assert stage.send().status.code == pb.OK, "it is not forgotten while no NameServer can be asked"


def test_the_other_brokers_go_on_without_a_dead_one() -> None:
    stage = ClusterStage(brokers=2)
    stage.add_topic("t")
    stage.network.dead.add(stage.address("broker-b"))
    assert {stage.send(b"%d" % number).status.code for number in range(6)} == {pb.OK}
    assert stage.stored() == [("broker-a", b"%d" % number) for number in range(6)]
    tried = [address for address, code in stage.network.asked if code == RequestCode.SEND_MESSAGE_V2]
    assert tried.count(stage.address("broker-b")) == 1, "it is left alone for a moment"
    stage.network.dead.clear()
    stage.clock.advance(5_000)
    for number in range(6, 10):
        assert stage.send(b"%d" % number).status.code == pb.OK
    assert [name for name, _ in stage.stored()].count("broker-b") == 2


def test_a_broker_that_was_slow_is_better_than_one_that_is_dead() -> None:
    stage = ClusterStage(brokers=2)
    stage.add_topic("t")
    for number in range(2):
        assert stage.send(b"%d" % number).status.code == pb.OK
    stage.network.silent.add(stage.address("broker-b"))
    for _ in range(2):
        stage.start("SendMessage", pb.SendMessageRequest(messages=[message("t", b"lost")]))
    stage.clock.advance(3_000)
    assert not stage.cluster.brokers["broker-b"].takes_sends
    stage.network.silent.clear()
    stage.network.dead.add(stage.address("broker-a"))
    before = len(stage.stored())
    for number in range(4):
        assert stage.send(b"%d" % number).status.code == pb.OK
    assert len(stage.stored()) == before + 4


def test_a_route_without_a_broker_that_can_be_reached_is_asked_for_again() -> None:
    stage = ClusterStage()
    stage.add_topic("t")
    stage.send(b"first")
    other = stage.add_broker("broker-b")
    stage.add_topic("t")
    other.broker.register(stage.names.routes, stage.address("broker-b"))
    stage.network.dead.add(stage.address("broker-a"))
    stage.clock.advance(2_000)
    assert stage.send(b"second").status.code == pb.PROXY_TIMEOUT, "only now is known that it is gone"
    assert stage.send(b"third").status.code == pb.OK
    assert stage.stored() == [("broker-a", b"first"), ("broker-b", b"third")]


def test_a_broker_that_starts_again_is_not_known_for_a_while() -> None:
    stage = ClusterStage()
    stage.add_topic("t")
    stage.send(b"first")
    stage.network.dead.add(stage.address("broker-a"))
    stage.names.routes.unregister("DefaultCluster", "broker-a", str(stage.address("broker-a")))
    with pytest.raises(TopicNotFound):
        stage.names.routes.route("t")
    for _ in range(3):
        assert stage.send().status.code == pb.PROXY_TIMEOUT, "not TOPIC_NOT_FOUND, which clients do not repeat"
        stage.clock.advance(1_100)


def test_messages_of_a_group_go_to_no_other_broker() -> None:
    stage = ClusterStage(brokers=2)
    stage.add_topic("t", "FIFO")
    assert stage.send(message_type=pb.FIFO, message_group="a").status.code == pb.OK
    ((name, _),) = stage.stored()
    stage.network.dead.add(stage.address(name))
    assert stage.send(message_type=pb.FIFO, message_group="a").status.code == pb.PROXY_TIMEOUT
    assert len(stage.stored()) == 1


def test_what_may_be_stored_already_is_not_sent_again() -> None:
    stage = ClusterStage(brokers=2)
    stage.add_topic("t")
    stage.network.silent |= {stage.address("broker-a"), stage.address("broker-b")}
    request = pb.SendMessageRequest()
    request.messages.add(
        topic=pb.Resource(name="t"),
        body=b"x",
        system_properties=pb.SystemProperties(message_id="id", message_type=pb.NORMAL),
    )
    # what is known of the topic is asked of a broker too
    stage.network.silent.clear()
    stage.send(b"first")
    stage.network.silent |= {stage.address("broker-a"), stage.address("broker-b")}
    before = stage.network.count(RequestCode.SEND_MESSAGE_V2)
    call = stage.start("SendMessage", request)
    stage.clock.advance(3_000)
    assert pb.SendMessageResponse.FromString(call.out[-1]).status.code == pb.PROXY_TIMEOUT
    assert stage.network.count(RequestCode.SEND_MESSAGE_V2) == before + 1


def test_brokers_come_and_go() -> None:
    stage = ClusterStage()
    stage.add_topic("t")
    stage.send(b"first")
    stage.add_broker("broker-b")
    stage.add_topic("t")
    stage.clock.advance(40_000)
    stage.send()  # asks where the topic is by now
    for number in range(4):
        stage.send(b"%d" % number)
    assert {name for name, _ in stage.stored()} == {"broker-a", "broker-b"}
    assert set(stage.cluster.brokers) == {"broker-a", "broker-b"}
    stage.brokers["broker-b"].stop()
    stage.clock.advance(60_000)
    assert set(stage.cluster.brokers) == {"broker-a", "broker-b"}, "its NameServer may just have started"
    stage.clock.advance(20_000)
    assert set(stage.cluster.brokers) == {"broker-a"}
    assert stage.cluster.trouble() == ""


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ResponseCode.FLUSH_DISK_TIMEOUT, pb.MASTER_PERSISTENCE_TIMEOUT),
        (ResponseCode.FLUSH_SLAVE_TIMEOUT, pb.SLAVE_PERSISTENCE_TIMEOUT),
        (ResponseCode.SLAVE_NOT_AVAILABLE, pb.HA_NOT_AVAILABLE),
        (ResponseCode.SYSTEM_BUSY, pb.TOO_MANY_REQUESTS),
        (ResponseCode.NO_PERMISSION, pb.FORBIDDEN),
        (ResponseCode.SYSTEM_ERROR, pb.INTERNAL_SERVER_ERROR),
    ],
)
def test_what_a_broker_answers_to_a_send(stage: ClusterStage, code: int, status: pb.Code) -> None:
    place = {"msgId": "7F00000100002A9F0000000000000000", "queueId": "0", "queueOffset": "0"}
    handlers = dict(stage.network.servers[stage.address("broker-a")])
    handlers[RequestCode.SEND_MESSAGE_V2] = lambda command, connection: Response(code, "why", place)
    stage.network.servers[stage.address("broker-a")] = handlers
    answer = stage.send().status
    assert (answer.code, answer.message) == (status, "why")


def test_a_replica_is_read_where_the_master_is_gone() -> None:
    stage = ClusterStage(brokers=2)
    stage.add_topic("t")
    names = stage.names.routes
    route = names.route("t")
    for data in route.broker_datas:
        if data.broker_name == "broker-b":
            data.broker_addrs[1] = data.broker_addrs.pop(0)
    stage.network.servers[NAMES] = dict(stage.network.servers[NAMES]) | {
        RequestCode.GET_ROUTEINFO_BY_TOPIC: lambda command, connection: Response(body=encode(route)),
        RequestCode.GET_BROKER_CLUSTER_INFO: lambda command, connection: Response(
            body=encode(ClusterInfo({data.broker_name: data for data in route.broker_datas}, {}))
        ),
    }
    stage.start_proxy()
    assert stage.take("broker-b") == []
    for number in range(4):
        assert stage.send(b"%d" % number).status.code == pb.OK
    assert {name for name, _ in stage.stored()} == {"broker-a"}
    stage.brokers["broker-b"].send("t", b"before the master was gone")
    assert [received.body for received in stage.take("broker-b")] == [b"before the master was gone"]


def test_nameservers_of_several_clusters() -> None:
    stage = ClusterStage()
    stage.add_topic("t")
    other, theirs = Address("10.0.0.8", 9876), name_server(stage.clock)
    stage.network.servers[other] = nameserver_remoting.table(theirs)
    stage.names_addresses = [other, NAMES]
    stage.start_proxy()
    assert stage.send().status.code == pb.OK, "the first one does not know the topic"
    assert set(stage.cluster.brokers) == {"broker-a"}
    stage.network.dead.add(other)
    stage.clock.advance(40_000)
    assert stage.send().status.code == pb.OK


def test_readiness_tells_of_brokers() -> None:
    stage = ClusterStage(brokers=0)
    assert "no NameServer" in stage.cluster.trouble()
    stage.add_broker("broker-a")
    stage.clock.advance(20_000)
    assert stage.cluster.trouble() == ""
    stage.add_topic("t")
    stage.network.dead.add(stage.address("broker-a"))
    stage.send()
    assert "broker-a" in stage.cluster.trouble()


def test_what_comes_for_somebody_who_left_goes_back(stage: ClusterStage) -> None:
    stage.take()
    request = receive_request()
    gone = stage.receive(request)
    stage.clock.run_soon()
    assert gone.ended is None
    gone.cancel()
    stage.send(b"x")
    stage.clock.advance(1_500)
    assert [received.body for received in stage.take()] == [b"x"]


WAITING = {"consumerGroup": "g", "topic": "t", "bname": "broker-a", "queueId": "0"}
PULL = {"queueOffset": "7", "maxMsgNums": "1", "sysFlag": "6", "commitOffset": "0", "suspendTimeoutMillis": "15000"}
POP = {"maxMsgNums": "1", "invisibleTime": "60000", "pollTime": "15000", "initMode": "0"}


@pytest.mark.parametrize(
    ("code", "fields", "answer", "answered"),
    [
        (RequestCode.PULL_MESSAGE, {**PULL, "subVersion": "0"}, ResponseCode.PULL_NOT_FOUND, {"nextBeginOffset": "7"}),
        (RequestCode.POP_MESSAGE, POP, ResponseCode.POLLING_TIMEOUT, {}),
        (RequestCode.NOTIFICATION, {"pollTime": "15000"}, ResponseCode.SUCCESS, {"hasMsg": "false"}),
    ],
)
def test_who_waits_over_remoting_is_answered_when_the_proxy_stops(
    stage: ClusterStage, code: int, fields: dict[str, str], answer: int, answered: dict[str, str]
) -> None:
    stage.add_topic("t")
    for _ in range(7):
        stage.send()
    stage.take()
    handler = remoting.table(stage.proxy, lambda address: address)[code]

    def ask() -> list[object]:
        said: list[object] = []
        hear(handler(Command(code, 1, fields={**WAITING, **fields}), OfflineConnection()), said.append, said.append)
        return said

    waiting, left = ask(), ask()
    assert waiting == left == []
    assert stage.cluster.drain()
    for (response,) in (waiting, left, ask()):
        assert isinstance(response, Response)
        assert response.code == answer, "the last one did not wait at all"
        assert answered.items() <= response.fields.items()
    assert not stage.cluster.drain(), "nobody waits"
    stage.send(b"late")
    stage.clock.advance(2_000)
    stage.start_proxy()
    assert [message.body for message in stage.take()] == [b"late"], "what came for them goes back"


def test_a_broker_of_ours_keeps_the_handle_of_a_push_consumer(stage: ClusterStage) -> None:
    hold_for_hours(stage)


def test_over_apaches_broker_the_proxy_knows_what_stands_for_the_handle(stage: ClusterStage) -> None:
    stage.network.unknown_fields |= {KEEP_HANDLE, CHECKS_HANDLE}
    hold_for_hours(stage)


def hold_for_hours(stage: ClusterStage) -> None:
    settings = pb.Settings(client_type=pb.PUSH_CONSUMER, subscription=pb.Subscription(group=pb.Resource(name="g")))
    stage.settings(settings)
    stage.take(auto_renew=True)
    stage.send(b"x")
    (received,) = stage.take(auto_renew=True)
    for _ in range(60):
        stage.clock.advance(60_000)
        assert stage.unary("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatResponse).status.code == pb.OK
    assert stage.ack(handle_of(received)) == pb.OK
    stage.clock.advance(120_000)
    assert stage.take() == []


def test_over_apaches_broker_the_proxy_looks_whether_a_handle_is_expired(stage: ClusterStage) -> None:
    stage.network.unknown_fields |= {KEEP_HANDLE, CHECKS_HANDLE}
    stage.take()
    stage.send(b"x")
    (received,) = stage.take()
    stage.clock.advance(29_999)
    stage.clock.advance(1)
    assert stage.ack(handle_of(received)) == pb.INVALID_RECEIPT_HANDLE


def test_settings_of_a_group(stage: ClusterStage) -> None:
    stage.brokers["broker-a"].broker.groups.put(GroupConfig(group_name="g", retry_max_times=3))
    settings = pb.Settings(client_type=pb.PUSH_CONSUMER, subscription=pb.Subscription(group=pb.Resource(name="g")))
    assert stage.settings(settings).backoff_policy.max_attempts == 4
