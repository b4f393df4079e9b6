"""How many queues there may be, and what a long table costs."""

from __future__ import annotations

import pytest

from saturnmq.disk.simulated import Operation, everything_survives
from saturnmq.kernel.errors import InvalidParameter
from saturnmq.kernel.topic import GroupConfig, TopicConfig
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode


def create(offline: OfflineBroker, name: str, reads: int, writes: int) -> tuple[int, str]:
    fields = {
        "topic": name, "defaultTopic": "TBW102", "readQueueNums": reads, "writeQueueNums": writes, "perm": 6,
        "topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": False,
    }  # fmt: skip
    answer = offline.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, fields)
    return answer.code, answer.remark


def test_queues_of_a_topic() -> None:
    offline = OfflineBroker(settings={"max_topic_queue_nums": 20})
    assert create(offline, "orders", 20, 20)[0] == 0
    assert create(offline, "orders", 4, 21) == (
        ResponseCode.INVALID_PARAMETER,
        "the topic orders would have 21 queues, the limit is 20 (maxTopicQueueNums)",
    )
    assert offline.broker.topics.configs["orders"].write_queue_nums == 20


def test_queues_of_a_broker() -> None:
    offline = OfflineBroker(settings={"max_queue_nums": 2000})
    before = offline.broker.topics._queues
    assert create(offline, "a", 1, 2000 - before)[0] == 0
    code, remark = create(offline, "b", 1, 1)
    assert code == ResponseCode.INVALID_PARAMETER
    assert remark == (
        "the topic b would bring 1 queues more, this broker has 2000 and the limit is 2000 (maxQueueNums)"
    )
    assert "maxQueueNums" in offline.send("new").remark, "a send creates none either"
    assert create(offline, "a", 1, 1999 - before)[0] == 0
    assert create(offline, "b", 1, 1)[0] == 0
    offline.broker.topics.ensure_retry("g")
    assert "%RETRY%g" in offline.broker.topics.configs, "what the broker needs itself is never refused"
    again = offline.restart()
    assert create(again, "c", 1, 1)[0] == ResponseCode.INVALID_PARAMETER


def test_groups_that_clients_name(caplog: pytest.LogCaptureFixture) -> None:
    """Operators may make more."""
    groups = OfflineBroker(settings={"max_group_nums": 20}).broker.groups
    made = [groups.get(f"group-{number}") is not None for number in range(30)]
    assert 0 < sum(made) < 20
    assert made == sorted(made, reverse=True)
    assert len(groups.configs) == 20
    assert caplog.text.count("maxGroupNums") == 1
    groups.alter([GroupConfig(group_name="by-hand")])
    assert groups.get("by-hand") is not None


def test_dev_mode_has_limits_too() -> None:
    offline = OfflineBroker(settings={"max_queue_nums": 1, "dev_auto_create": True})
    with pytest.raises(InvalidParameter, match="maxQueueNums"):
        offline.broker.topic_config("new")


def test_retry_queues_of_a_group_have_the_limit_of_a_topic() -> None:
    offline = OfflineBroker(settings={"max_topic_queue_nums": 20})
    offline.broker.groups.put(GroupConfig(group_name="g", retry_queue_nums=1 << 30))
    offline.heartbeat("c", consumers={"g": ["orders"]})
    assert offline.broker.topics.configs["%RETRY%g"].read_queue_nums == 20


@pytest.mark.parametrize("name", ["x" * 256, "a/b", "..", "", "a\0b"])
def test_names_that_no_directory_can_have(name: str) -> None:
    offline = OfflineBroker()
    offline.broker.topics.put(TopicConfig(topic_name=name, read_queue_nums=1, write_queue_nums=1))
    assert offline.send(name).code != 0
    offline.clock.advance(60_000)
    assert offline.send("orders").code == 0, "the store lives"


def test_a_topic_that_a_crash_made_it_forget_is_made_again() -> None:
    """Its messages were acknowledged: they must be within reach."""
    offline = OfflineBroker(store_settings={"flush_disk_type": "SYNC_FLUSH"})
    offline.disk.faults[Operation.RENAME, "config/"] = 5
    for queue_id in (0, 2):
        assert offline.send("orders", b"%d" % queue_id, queue_id=queue_id).code == 0
    disk = offline.disk.crashed(survives=everything_survives)
    assert not disk.exists("config/topics.json")
    again = OfflineBroker(disk, VirtualClock(offline.clock.now_ms()))
    topic = again.broker.topics.configs["orders"]
    assert (topic.read_queue_nums, topic.write_queue_nums, topic.perm) == (3, 3, 6)
    assert topic.attributes == {"message.type": "MIXED"}
    assert [message.body for message in again.stored("orders", 2)] == [b"2"]
    again.clock.run_soon()
    table = json.parse(again.disk.read_file("config/topics.json"), most_tokens=1 << 20)
    assert "orders" in table["topicConfigTable"]


def test_a_table_that_takes_long_is_written_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    offline = OfflineBroker()
    replace, writes = offline.disk.replace_file, []

    def slow(path: str, data: bytes) -> None:
        if path == "config/topics.json":
            writes.append(offline.clock.now_ms())
            offline.clock._now_ms += 40
        replace(path, data)

    monkeypatch.setattr(offline.disk, "replace_file", slow)
    begin_ms = offline.clock.now_ms()
    for number in range(200):
        offline.broker.topics.ensure_retry(f"g{number}")
        offline.clock.advance(10)
    offline.clock.advance(1_000)
    assert len(writes) <= (offline.clock.now_ms() - begin_ms) / 400 + 1
    assert b"g199" in offline.disk.read_file("config/topics.json")
    assert len(writes) > 4
