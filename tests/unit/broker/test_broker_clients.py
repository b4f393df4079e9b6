"""Heart-beats, members, notifications, locks, request-reply."""

from __future__ import annotations

from saturnmq.kernel import properties as names
from saturnmq.kernel.topic import GroupConfig, TopicConfig
from saturnmq.testing.offline import OfflineBroker, OfflineConnection
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

CHANGED = (RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": "g"})


def ids(offline: OfflineBroker, group: str = "g") -> list[str]:
    response = offline.ask(RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": group})
    return [] if response.code else json.parse(response.body)["consumerIdList"]


def test_members_are_known_by_their_heart_beats() -> None:
    offline = OfflineBroker()
    nobody = offline.ask(RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": "g"})
    assert (nobody.code, nobody.remark) == (ResponseCode.SYSTEM_ERROR, "no consumer for this group, g")
    response = offline.heartbeat("c1", consumers={"g": ["orders"]}, producers=["p"])
    assert response.fields == {"IS_SUPPORT_HEART_BEAT_V2": "true", "IS_SUB_CHANGE": "true"}
    offline.heartbeat("c2", consumers={"g": ["orders"]}, connection=OfflineConnection())
    assert ids(offline) == ["c1", "c2"]
    assert offline.broker.topics.get("%RETRY%g") == TopicConfig(
        topic_name="%RETRY%g", read_queue_nums=1, write_queue_nums=1
    )


def test_producers_are_listed() -> None:
    offline = OfflineBroker()
    assert offline.ask(RequestCode.GET_PRODUCER_CONNECTION_LIST, {"producerGroup": "p"}).code == 1
    offline.heartbeat("c1", producers=["p"])
    response = offline.ask(RequestCode.GET_PRODUCER_CONNECTION_LIST, {"producerGroup": "p"})
    [connection] = json.parse(response.body)["connectionSet"]
    assert (connection["clientId"], connection["clientAddr"]) == ("c1", "10.0.0.1:50000")


def test_consumers_and_what_they_want_are_listed() -> None:
    offline = OfflineBroker()
    refused = offline.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": "g"})
    assert (refused.code, refused.remark) == (ResponseCode.CONSUMER_NOT_ONLINE, "the consumer group[g] not online")
    body = {
        "clientID": "c1",
        "consumerDataSet": [
            {
                "groupName": "g", "consumeType": "CONSUME_ACTIVELY", "messageModel": "BROADCASTING",
                "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
                "subscriptionDataSet": [{"topic": "orders", "subString": "a || b", "subVersion": 5}],
            }
        ],
    }  # fmt: skip
    offline.ask(RequestCode.HEART_BEAT, body=json.write(body))
    response = offline.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": "g"})
    subscription = {
        "topic": "orders", "subString": "a || b", "expressionType": "TAG", "tagsSet": ["a", "b"], "codeSet": [97, 98],
        "subVersion": 5, "classFilterMode": False,
    }  # fmt: skip
    assert json.parse(response.body) == {
        "connectionSet": [{"clientId": "c1", "clientAddr": "10.0.0.1:50000", "language": "PYTHON", "version": 479}],
        "subscriptionTable": {"orders": subscription},
        "consumeType": "CONSUME_ACTIVELY",
        "messageModel": "BROADCASTING",
        "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
    }

    def wanted(**fields: str) -> object:
        response = offline.ask(RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER, {"group": "g", "topic": "orders", **fields})
        return json.parse(response.body)

    assert wanted() == {"group": "g", "topic": "orders", "subscriptionData": subscription}
    assert wanted(topic="more") == {"group": "g", "topic": "more"}
    assert wanted(group="h") == {"group": "h", "topic": "orders"}


def test_a_group_that_may_not_be_created_is_passed_over() -> None:
    offline = OfflineBroker(settings={"auto_create_subscription_group": False})
    offline.broker.groups.put(GroupConfig(group_name="g", retry_queue_nums=3))
    assert offline.heartbeat("c1", consumers={"h": ["orders"], "g": ["orders"]}).code == 0
    assert (ids(offline, "h"), ids(offline)) == ([], ["c1"])
    retry = offline.broker.topics.get("%RETRY%g")
    assert retry is not None
    assert retry.write_queue_nums == 3


def test_topics_of_clients_in_unit_mode_are_marked() -> None:
    offline = OfflineBroker()
    body = b'{"clientID":"c1","consumerDataSet":[{"groupName":"g","unitMode":true}]}'
    offline.ask(RequestCode.HEART_BEAT, body=body)
    for topic in ("orders", "%RETRY%h"):
        assert offline.send(topic, header={"k": True}).code == 0
    flags = {name: offline.broker.topics.configs[name].topic_sys_flag for name in ("%RETRY%g", "orders", "%RETRY%h")}
    assert flags == {"%RETRY%g": 2, "orders": 1, "%RETRY%h": 2}


def test_every_member_is_told_once_a_turn_when_members_come_and_go() -> None:
    offline = OfflineBroker()
    first, second = OfflineConnection(), OfflineConnection()
    offline.heartbeat("c1", consumers={"g": ["orders"]}, connection=first)
    assert first.told == [CHANGED]
    offline.heartbeat("c2", consumers={"g": ["orders"]}, connection=second)
    assert (first.told, second.told) == ([CHANGED] * 2, [CHANGED])
    offline.heartbeat("c1", consumers={"g": ["orders"]}, connection=first)
    assert first.told == [CHANGED] * 2, "nothing changed"
    offline.heartbeat("c1", consumers={"g": ["orders", "more"]}, connection=first)
    assert (first.told, second.told) == ([CHANGED] * 3, [CHANGED] * 2)
    offline.ask(RequestCode.UNREGISTER_CLIENT, {"clientID": "c1", "consumerGroup": "g"}, connection=first)
    assert (first.told, second.told) == ([CHANGED] * 3, [CHANGED] * 3)
    assert ids(offline) == ["c2"]


def test_who_does_not_want_to_be_told_is_not() -> None:
    offline = OfflineBroker()
    offline.broker.groups.put(GroupConfig(group_name="g", notify_consumer_ids_changed_enable=False))
    offline.heartbeat("c1", consumers={"g": ["orders"]})
    assert offline.connection.told == []
    body = b'{"clientID":"c1","consumerDataSet":[{"groupName":"b","messageModel":"BROADCASTING"}]}'
    offline.ask(RequestCode.HEART_BEAT, body=body)
    assert offline.connection.told == [], "broadcasting members share nothing"


def test_a_lost_connection_takes_its_clients_along() -> None:
    offline = OfflineBroker()
    lost = OfflineConnection()
    offline.heartbeat("c1", consumers={"g": ["orders"], "h": ["orders"]}, producers=["p"], connection=lost)
    offline.heartbeat("c2", consumers={"g": ["orders"]})
    lost.close()
    offline.clock.run_soon()
    assert (ids(offline), ids(offline, "h")) == (["c2"], [])
    assert offline.broker.clients.producer("c1") is None
    assert offline.connection.told[-1] == CHANGED


def test_a_client_that_came_back_is_one_member() -> None:
    offline = OfflineBroker()
    old = OfflineConnection()
    offline.heartbeat("c1", consumers={"g": ["orders"]}, producers=["p"], connection=old)
    offline.heartbeat("c1", consumers={"g": ["orders"]}, producers=["p"])
    assert ids(offline) == ["c1"]
    old.close()
    assert ids(offline) == ["c1"]
    assert offline.broker.clients.producer("c1") is not None


def test_silence_for_two_minutes_ends_a_membership() -> None:
    offline = OfflineBroker()
    offline.heartbeat("c1", consumers={"g": ["orders"]}, producers=["p"])
    other = OfflineConnection()
    offline.clock.advance(60_000)
    offline.heartbeat("c2", consumers={"g": ["orders"]}, connection=other)
    offline.clock.advance(60_000)
    assert ids(offline) == ["c1", "c2"]
    offline.clock.advance(20_000)
    assert ids(offline) == ["c2"]
    assert other.told[-1] == CHANGED
    assert offline.broker.clients.producer("c1") is None
    offline.clock.advance(120_000)
    assert ids(offline) == []


def test_a_clock_put_forward_is_no_silence() -> None:
    offline = OfflineBroker()
    offline.heartbeat("c1", consumers={"g": ["orders"]})
    assert lock(offline, "c1", 0) == [0]
    offline.clock.jump(3_600_000)
    assert ids(offline) == ["c1"]
    assert lock(offline, "c2", 0) == []


def test_the_second_heart_beat_version_leaves_subscriptions_out() -> None:
    offline = OfflineBroker()

    def heartbeat(fingerprint: int, *, without: bool) -> str:
        topics = [] if without else ["orders"]
        asked = offline.heartbeat("c1", consumers={"g": topics}, heartbeatFingerprint=fingerprint, withoutSub=without)
        return asked.fields["IS_SUB_CHANGE"]

    assert heartbeat(7, without=True) == "true", "after a restart the broker asks for what it does not know"
    assert heartbeat(7, without=False) == "false"
    assert heartbeat(7, without=True) == "false"
    group = offline.broker.clients.consumer_group("g")
    assert group is not None
    assert list(group.subscriptions) == ["orders"]
    assert heartbeat(8, without=False) == "true"


def test_a_broken_body_is_answered() -> None:
    offline = OfflineBroker()
    assert offline.ask(RequestCode.HEART_BEAT, body=b"{").code == ResponseCode.INVALID_PARAMETER


def lock(offline: OfflineBroker, client_id: str, *queue_ids: int, code: int = RequestCode.LOCK_BATCH_MQ) -> list[int]:
    body = {
        "consumerGroup": "g",
        "clientId": client_id,
        "mqSet": [{"topic": "orders", "brokerName": "broker-a", "queueId": queue_id} for queue_id in queue_ids],
        "onlyThisBroker": False,
    }
    response = offline.ask(code, body=json.write(body))
    assert response.code == 0
    return [queue["queueId"] for queue in json.parse(response.body)["lockOKMQSet"]] if response.body else []


def test_a_queue_is_locked_for_a_minute() -> None:
    offline = OfflineBroker()
    assert lock(offline, "c1", 0, 1) == [0, 1]
    assert lock(offline, "c2", 1, 2) == [2]
    offline.clock.advance(60_000)
    assert lock(offline, "c1", 0) == [0], "asking again keeps it"
    offline.clock.advance(1)
    assert lock(offline, "c2", 0, 1) == [1], "the other one was not asked for"


def test_a_queue_is_unlocked_by_its_owner_only() -> None:
    offline = OfflineBroker()
    lock(offline, "c1", 0)
    lock(offline, "c2", 0, code=RequestCode.UNLOCK_BATCH_MQ)
    assert lock(offline, "c2", 0) == []
    lock(offline, "c1", 0, code=RequestCode.UNLOCK_BATCH_MQ)
    assert lock(offline, "c2", 0) == [0]


def reply_fields(**properties: str) -> dict[str, object]:
    return {
        "a": "repliers", "b": "DefaultCluster_REPLY_TOPIC", "c": "TBW102", "d": 4, "e": 0, "f": 0, "g": 7, "h": 0,
        "i": names.encode(properties).decode(), "j": 0,
    }  # fmt: skip


def test_an_answer_goes_to_the_requester_and_into_the_log() -> None:
    offline = OfflineBroker()
    requester = OfflineConnection()
    offline.heartbeat("requester", producers=["p"], connection=requester)
    asked = offline.ask(
        RequestCode.SEND_REPLY_MESSAGE_V2,
        reply_fields(REPLY_TO_CLIENT="requester", CORRELATION_ID="42"),
        b"answer",
        connection=OfflineConnection("10.0.0.9:1"),
    )
    assert asked.waits, "until the requester has it"
    ((code, fields, body, answer),) = requester.asked
    assert (code, body) == (RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, b"answer")
    properties = names.decode(fields["properties"].encode())
    assert (properties["CORRELATION_ID"], properties["PUSH_REPLY_TIME"]) == ("42", str(offline.clock.now_ms()))
    assert (fields["producerGroup"], fields["topic"]) == ("repliers", "DefaultCluster_REPLY_TOPIC")
    assert fields["storeTimestamp"] == str(offline.clock.now_ms())
    answer.resolve(Command(0, 1))
    assert (asked.code, asked.fields["queueOffset"]) == (0, "0")
    (stored,) = offline.stored("DefaultCluster_REPLY_TOPIC")
    assert (stored.body, b"PUSH_REPLY_TIME" in stored.properties) == (b"answer", False)


def test_an_answer_of_an_older_client_has_long_names() -> None:
    offline, requester = OfflineBroker(), OfflineConnection()
    offline.heartbeat("requester", producers=["p"], connection=requester)
    long = {
        "producerGroup": "repliers", "topic": "DefaultCluster_REPLY_TOPIC", "defaultTopic": "TBW102",
        "defaultTopicQueueNums": 4, "queueId": 0, "sysFlag": 0, "bornTimestamp": 7, "flag": 0,
        "properties": names.encode({"REPLY_TO_CLIENT": "requester"}).decode(),
    }  # fmt: skip
    asked = offline.ask(RequestCode.SEND_REPLY_MESSAGE, long, b"answer")
    ((_, _, body, answer),) = requester.asked
    assert body == b"answer"
    answer.resolve(Command(0, 1))
    assert asked.code == 0


def test_an_answer_that_reaches_nobody_fails() -> None:
    offline = OfflineBroker(settings={"store_reply_message_enable": False})
    gone = offline.ask(RequestCode.SEND_REPLY_MESSAGE_V2, reply_fields(REPLY_TO_CLIENT="gone"), b"a")
    assert (gone.code, "<gone> not found" in gone.remark) == (ResponseCode.SERVICE_NOT_AVAILABLE, True)
    nobody = offline.ask(RequestCode.SEND_REPLY_MESSAGE_V2, reply_fields(), b"a")
    assert (nobody.code, "REPLY_TO_CLIENT" in nobody.remark) == (ResponseCode.SERVICE_NOT_AVAILABLE, True)
    requester = OfflineConnection()
    offline.heartbeat("requester", producers=["p"], connection=requester)
    asked = offline.ask(RequestCode.SEND_REPLY_MESSAGE_V2, reply_fields(REPLY_TO_CLIENT="requester"), b"a")
    requester.asked[0][3].resolve(Command(1, 1, remark="no such request"))
    assert (asked.code, "no such request" in asked.remark) == (
        ResponseCode.SERVICE_NOT_AVAILABLE, True,
    )  # fmt: skip
    assert offline.stored("DefaultCluster_REPLY_TOPIC") == []
