"""The Proxy's Remoting port: what its clients ask goes to the broker that they name."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import pytest

from saturnmq.kernel.config import ProxyConfig
from saturnmq.kernel.errors import TopicNotFound
from saturnmq.kernel.host import Address
from saturnmq.kernel.topic import BrokerData, GroupConfig, MessageQueue, QueueData, TopicConfig, TopicRoute
from saturnmq.proxy import remoting
from saturnmq.proxy.proxy import Proxy
from saturnmq.testing.offline import Asked, OfflineBroker, OfflineConnection
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

BROKER = {"bname": "broker-a"}
DELIVERY = {"consumerGroup": "g", "topic": "orders", "queueId": 0}
SUBSCRIPTION = 4


class Routes:
    """A `kernel.ports.RoutePort`."""

    def route(self, topic: str) -> TopicRoute:
        if topic != "orders":
            raise TopicNotFound(topic)
        broker = BrokerData(cluster="c", broker_name="broker-a", broker_addrs={0: "10.9.9.9:1", 1: "10.9.9.8:1"})
        queues = QueueData(broker_name="broker-a", read_queue_nums=4, write_queue_nums=4, perm=6)
        return TopicRoute(broker_datas=[broker], queue_datas=[queues])


def at_proxy(*, serves_unnamed: bool = False, **config: object) -> OfflineBroker:
    """A broker whose clients speak to a Proxy. It has a topic and a group."""
    offline = OfflineBroker()
    broker = offline.broker
    broker.topics.put(TopicConfig(topic_name="orders"))
    broker.groups.put(GroupConfig(group_name="g"))
    proxy = Proxy({broker.name: broker}, broker, Routes(), ProxyConfig(**config), offline.clock)  # type: ignore[arg-type]
    told = {Address.parse("127.0.0.1:10911"): Address.parse("mq.example:8080")}
    offline.handlers = remoting.table(proxy, told.__getitem__, broker if serves_unnamed else None)
    return offline


@pytest.fixture
def offline() -> OfflineBroker:
    return at_proxy()


def send(offline: OfflineBroker, topic: str = "orders", body: bytes = b"x", **properties: str) -> Asked:
    return offline.send(topic, body, queue_id=0, header={"n": "broker-a"}, **properties)


NAMED: Mapping[int, Mapping[str, object]] = {
    RequestCode.SEND_MESSAGE: {
        "producerGroup": "p", "topic": "orders", "defaultTopic": "TBW102", "defaultTopicQueueNums": 4, "queueId": 0,
        "sysFlag": 0, "bornTimestamp": 0, "flag": 0,
    },
    RequestCode.CONSUMER_SEND_MSG_BACK: {"offset": 0, "group": "g", "delayLevel": 0},
    RequestCode.RECALL_MESSAGE: {"topic": "orders", "recallHandle": ""},
    RequestCode.END_TRANSACTION: {
        "producerGroup": "p", "topic": "orders", "tranStateTableOffset": 0, "commitLogOffset": 0, "commitOrRollback": 8,
        "msgId": "KEY",
    },
    RequestCode.PULL_MESSAGE: {
        **DELIVERY, "queueOffset": 0, "maxMsgNums": 1, "sysFlag": 4, "commitOffset": 0, "suspendTimeoutMillis": 0,
        "subVersion": 0,
    },
    RequestCode.POP_MESSAGE: {**DELIVERY, "maxMsgNums": 1, "invisibleTime": 60_000, "pollTime": 0, "initMode": 0},
    RequestCode.ACK_MESSAGE: {**DELIVERY, "extraInfo": "0 0 0 0 0 broker-a 0 0", "offset": 0},
    RequestCode.CHANGE_MESSAGE_INVISIBLETIME: {
        **DELIVERY, "extraInfo": "0 0 0 0 0 broker-a 0 0", "offset": 0, "invisibleTime": 1000,
    },
    RequestCode.NOTIFICATION: {**DELIVERY, "pollTime": 0},
    RequestCode.QUERY_CONSUMER_OFFSET: DELIVERY,
    RequestCode.UPDATE_CONSUMER_OFFSET: {**DELIVERY, "commitOffset": 1},
    RequestCode.SEARCH_OFFSET_BY_TIMESTAMP: {**DELIVERY, "timestamp": 0},
    RequestCode.GET_MAX_OFFSET: DELIVERY,
    RequestCode.GET_MIN_OFFSET: DELIVERY,
}  # fmt: skip


@pytest.mark.parametrize("code", NAMED)
def test_who_names_no_broker_is_to_ask_a_nameserver(offline: OfflineBroker, code: int) -> None:
    refused = offline.ask(code, NAMED[code])
    assert refused.code == ResponseCode.VERSION_NOT_SUPPORTED
    assert refused.remark.startswith("Request doesn't have field bname")
    assert "NameServer" in refused.remark
    unknown = offline.ask(code, {**NAMED[code], "bname": "broker-z"})
    assert (unknown.code, unknown.remark) == (
        ResponseCode.SYSTEM_ERROR, "the broker 'broker-z' is not known to this Proxy",
    )  # fmt: skip


def test_short_names_have_one_for_the_broker_too(offline: OfflineBroker) -> None:
    assert offline.send("orders").code == ResponseCode.VERSION_NOT_SUPPORTED
    sent = send(offline)
    assert (sent.code, sent.fields["MSG_REGION"], sent.fields["TRACE_ON"]) == (0, "DefaultRegion", "true")
    assert [message.body for message in offline.stored("orders")] == [b"x"]


def test_one_broker_alone_need_not_be_named() -> None:
    offline = at_proxy(serves_unnamed=True)
    assert offline.send("orders").code == 0
    assert offline.ask(RequestCode.GET_MAX_OFFSET, DELIVERY).fields == {"offset": "1"}
    assert offline.pull("g", "orders", 0).code == 0


def test_a_topic_takes_messages_of_its_type(offline: OfflineBroker) -> None:
    refused = send(offline, DELAY="3")
    assert refused.code == ResponseCode.MESSAGE_ILLEGAL
    assert "the topic orders takes NORMAL messages, this one is DELAY" in refused.remark
    assert send(offline, DELAY="3", TRANSFER_FLAG="true").code == 0, "another server has taken it already"
    assert send(offline, "new", DELAY="3").code == 0, "the broker creates the topic"
    assert send(at_proxy(enable_topic_message_type_check=False), DELAY="3").code == 0


def test_recall_needs_a_broker_that_knows_the_handle(offline: OfflineBroker) -> None:
    offline.broker.topics.put(TopicConfig(topic_name="later", attributes={"message.type": "DELAY"}))
    sent = send(offline, "later", TIMER_DELAY_SEC="60")
    recalled = offline.ask(
        RequestCode.RECALL_MESSAGE, {**BROKER, "topic": "later", "recallHandle": sent.fields["recallHandle"]}
    )
    assert (recalled.code, recalled.fields["msgId"]) == (0, "KEY")


def test_a_pull_that_does_not_say_what_it_wants(offline: OfflineBroker) -> None:
    send(offline, TAGS="red")
    send(offline, body=b"blue", TAGS="blue")

    def pull() -> Asked:
        return offline.pull("g", "orders", 0, sysFlag=0, subscription=None, bname="broker-a")

    assert pull().code == ResponseCode.SUBSCRIPTION_NOT_LATEST
    offline.heartbeat("c", consumers={"g": ["bills"]})
    assert pull().code == ResponseCode.SUBSCRIPTION_NOT_EXIST
    offline.heartbeat("c", consumers={"g": ["orders"]})
    assert (pull().code, pull().fields["nextBeginOffset"]) == (0, "2")


def test_a_pull_says_how_far_the_group_is(offline: OfflineBroker) -> None:
    send(offline)
    offline.pull("g", "orders", 1, sysFlag=SUBSCRIPTION | 1, commitOffset=1, bname="broker-a")
    committed = offline.ask(RequestCode.QUERY_CONSUMER_OFFSET, {**BROKER, **DELIVERY})
    assert committed.fields == {"offset": "1"}


def test_who_is_in_a_group(offline: OfflineBroker) -> None:
    connection = OfflineConnection()
    beat = offline.heartbeat("c", consumers={"g": ["orders"]}, producers=["g"], connection=connection)
    assert (beat.code, beat.fields) == (0, {}), "whole heart-beats: no client is told of shorter ones"
    ids = offline.ask(RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": "g"})
    assert json.parse(ids.body) == {"consumerIdList": ["c"]}
    [member] = json.parse(
        offline.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": "g"}).body
    )["connectionSet"]  # fmt: skip
    assert member["clientAddr"] == "10.0.0.1:50000"

    offline.ask(RequestCode.UNREGISTER_CLIENT, {"clientID": "c", "producerGroup": "g"}, connection=connection)
    assert offline.broker.clients.producers("g") == []
    assert offline.broker.clients.consumer_group("g") is not None, "it consumes in a group of the same name"
    connection.close()
    assert offline.ask(RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": "g"}).code == 1


def test_members_hear_of_each_other(offline: OfflineBroker) -> None:
    first, second = OfflineConnection("10.0.0.1:1"), OfflineConnection("10.0.0.2:1")
    offline.heartbeat("c1", consumers={"g": ["orders"]}, connection=first)
    offline.heartbeat("c2", consumers={"g": ["orders"]}, connection=second)
    assert first.told[-1] == (RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": "g"})


def test_the_broker_asks_a_consumer_through_the_proxy(offline: OfflineBroker) -> None:
    connection = OfflineConnection()
    offline.heartbeat("c", consumers={"g": ["orders"]}, connection=connection)
    channel = offline.broker.clients.consumer("g", "c")
    assert channel is not None
    channel.running_info("g", with_stack=False)
    [(code, _, _, answer)] = connection.asked
    answer.resolve(Command(0, 1, body=b"{}"))
    assert code == RequestCode.GET_CONSUMER_RUNNING_INFO


def test_popping(offline: OfflineBroker) -> None:
    for body in (b"a", b"b", b"c"):
        send(offline, body=body)
    pop = {**BROKER, **NAMED[RequestCode.POP_MESSAGE], "maxMsgNums": 3}
    popped = offline.ask(RequestCode.POP_MESSAGE, pop)
    assert (popped.code, popped.fields["msgOffsetInfo"]) == (0, "0 0 0,1,2")
    fields = popped.fields
    handle = f"0 {fields['popTime']} {fields['invisibleTime']} {fields['reviveQid']} 0 broker-a 0 "
    ack = {**BROKER, **DELIVERY, "extraInfo": handle + "0", "offset": 0}
    assert offline.ask(RequestCode.ACK_MESSAGE, ack).code == 0
    change = {**BROKER, **DELIVERY, "extraInfo": handle + "1", "offset": 1, "invisibleTime": 1000}
    assert offline.ask(RequestCode.CHANGE_MESSAGE_INVISIBLETIME, change).fields["invisibleTime"] == "1000"
    batch = {
        "c": "g", "t": "orders", "r": "0", "so": 0, "q": 0, "rq": int(fields["reviveQid"]),
        "pt": int(fields["popTime"]), "it": 60_000, "b": base64.b64encode(b"\x05").decode(),
    }  # fmt: skip
    body = json.write({"brokerName": "broker-a", "acks": [batch]})
    assert offline.ask(RequestCode.BATCH_ACK_MESSAGE, body=body).code == 0
    offline.clock.advance(120_000)
    again = offline.ask(RequestCode.POP_MESSAGE, pop)
    assert again.body.count(b"\x01K") == popped.body.count(b"\x01K") // 3, "the one that was hidden only comes again"
    notified = offline.ask(RequestCode.NOTIFICATION, {**BROKER, **NAMED[RequestCode.NOTIFICATION]})
    assert notified.fields == {"hasMsg": "false", "pollingFull": "false"}


def test_where_a_queue_begins_and_ends(offline: OfflineBroker) -> None:
    send(offline)
    codes = (RequestCode.GET_MIN_OFFSET, RequestCode.GET_MAX_OFFSET, RequestCode.SEARCH_OFFSET_BY_TIMESTAMP)
    asked = [offline.ask(code, {**BROKER, **DELIVERY, "timestamp": offline.clock.now_ms() + 1}) for code in codes]
    assert [one.fields["offset"] for one in asked] == ["0", "1", "1"]
    offline.ask(RequestCode.UPDATE_CONSUMER_OFFSET, {**BROKER, **DELIVERY, "commitOffset": 7})
    assert offline.broker.committed("g", MessageQueue("orders", "broker-a", 0)) == 7


def test_what_is_sent_back_comes_again(offline: OfflineBroker) -> None:
    send(offline)
    assert (
        offline.ask(RequestCode.CONSUMER_SEND_MSG_BACK, {**BROKER, "offset": 0, "group": "g", "delayLevel": 1}).code
        == 0
    )
    offline.clock.advance(2_000)
    assert len(offline.stored("%RETRY%g")) == 1


def test_queues_are_locked_at_their_broker(offline: OfflineBroker) -> None:
    queue = {"topic": "orders", "brokerName": "broker-a", "queueId": 0}

    def lock(client_id: str, code: int = RequestCode.LOCK_BATCH_MQ) -> object:
        body = json.write({"consumerGroup": "g", "clientId": client_id, "mqSet": [queue]})
        answer = offline.ask(code, body=body)
        return json.parse(answer.body)["lockOKMQSet"] if answer.body else answer.code

    assert (lock("c1"), lock("c2")) == ([queue], [])
    assert lock("c1", RequestCode.UNLOCK_BATCH_MQ) == 0
    assert lock("c2") == [queue]
    nothing = json.write({"consumerGroup": "g", "clientId": "c", "mqSet": []})
    assert json.parse(offline.ask(RequestCode.LOCK_BATCH_MQ, body=nothing).body) == {"lockOKMQSet": []}
    assert offline.ask(RequestCode.UNLOCK_BATCH_MQ, body=nothing).code == 0


def test_a_filter_is_looked_at_before_it_is_used(offline: OfflineBroker) -> None:
    def check(expression: str) -> int:
        data = {"topic": "orders", "subString": expression, "expressionType": "SQL92"}
        return offline.ask(RequestCode.CHECK_CLIENT_CONFIG, body=json.write({"subscriptionData": data})).code

    assert (check("a > 5"), check("a >")) == (0, ResponseCode.SUBSCRIPTION_PARSE_FAILED)


def test_all_brokers_are_at_the_proxy(offline: OfflineBroker) -> None:
    route = json.parse(offline.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "orders"}).body)
    assert route["brokerDatas"][0]["brokerAddrs"] == {"0": "mq.example:8080", "1": "mq.example:8080"}
    assert route["queueDatas"][0]["readQueueNums"] == 4
    assert offline.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "nope"}).code == ResponseCode.TOPIC_NOT_EXIST
