"""Directories that Apache's broker made with settings whose files SaturnMQ cannot read: each is refused by its name."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.admin import RemotingConnection
from harness.apache import Apache
from harness.pipeline import packed
from harness.servers import free_port
from harness.shared_broker import PATIENT, SMALL_FILES, SharedBroker

from saturnmq.testing.server import ServerError

UPDATE_AND_CREATE_TOPIC = 17
SEND_MESSAGE_V2 = 310
POP_MESSAGE = 200_050
PREPARED = 4
MESSAGES = 3

#: access control's classes
AUTHENTICATION = "org.apache.rocketmq.auth.authentication.provider"
AUTHORIZATION = "org.apache.rocketmq.auth.authorization.provider"


@dataclass(frozen=True)
class Case:
    """What Apache's broker is told, and what comes of it."""

    #: `{store}` is its directory, `{port}` a free port
    settings: dict[str, str]
    #: path → what the refusal says of it
    refused: dict[str, str]
    #: the refusal tells the way to a store that opens, with the messages of ordinary topics
    remedied: bool = True


CONFIG_IN_ROCKSDB = {
    "config/topics": "a RocksDB store of topics",
    "config/subscriptionGroups": "a RocksDB store of consumer groups",
    "config/consumerOffsets": "a RocksDB store of consumer offsets",
}
CASES = {
    "queues": Case({"storeType": "defaultRocksDB"}, {"consumequeue": "storeType=defaultRocksDB", **CONFIG_IN_ROCKSDB}),
    "queues apart": Case(
        {"storeType": "defaultRocksDB", "useSeparateStorePathForRocksdbCQ": "true"},
        {"consumequeue_rocksdb": "useSeparateStorePathForRocksdbCQ=true", **CONFIG_IN_ROCKSDB},
    ),
    "log": Case(
        {
            "enableDLegerCommitLog": "true",
            "dLegerGroup": "broker-a",
            "dLegerPeers": "n0-127.0.0.1:{port}",
            "dLegerSelfId": "n0",
        },
        {"dledger-n0": "enableDLegerCommitLog=true"},
        remedied=False,
    ),
    "all else": Case(
        {
            "configManagerVersion": "v2",
            "enableConsumeQueueExt": "true",
            "indexRocksDBEnable": "true",
            "timerRocksDBEnable": "true",
            "transRocksDBEnable": "true",
            "popConsumerKVServiceInit": "true",
            "popConsumerKVServiceEnable": "true",
            "messageStorePlugIn": "org.apache.rocketmq.tieredstore.TieredMessageStore",
            "tieredBackendServiceProvider": "org.apache.rocketmq.tieredstore.provider.PosixFileSegment",
            "tieredStoreFilePath": "{store}-tiered",
            "authConfigPath": "{store}/config",
            "authenticationEnabled": "true",
            "authenticationProvider": f"{AUTHENTICATION}.DefaultAuthenticationProvider",
            "authenticationMetadataProvider": f"{AUTHENTICATION}.LocalAuthenticationMetadataProvider",
            "authorizationProvider": f"{AUTHORIZATION}.DefaultAuthorizationProvider",
            "authorizationMetadataProvider": f"{AUTHORIZATION}.LocalAuthorizationMetadataProvider",
            "authenticationWhitelist": f"{UPDATE_AND_CREATE_TOPIC},{SEND_MESSAGE_V2},{POP_MESSAGE}",
            "initAuthenticationUser": '{"username":"user","password":"secret"}',
        },
        {
            "config/rdb": "configManagerVersion=v2",
            "consumequeue_ext": "enableConsumeQueueExt=true",
            "batchconsumequeue": "queues of BatchCQ topics",
            "compaction/compactionLog": "logs of compaction topics",
            "rocksdbstore": "indexRocksDBEnable, timerRocksDBEnable or transRocksDBEnable=true",
            "kvStore": "popConsumerKVServiceEnable=true",
            "config/users": "users of access control",
            "config/acls": "rules of access control",
            "config/tieredStoreMetadata.json": "TieredMessageStore",
        },
    ),
}


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def broker(case: Case, tmp_path: Path, apache: Apache, namesrv: str) -> Iterator[SharedBroker]:
    names = {"{store}": str(tmp_path / "store"), "{port}": str(free_port())}
    settings = case.settings
    for name, value in names.items():
        settings = {key: text.replace(name, value) for key, text in settings.items()}
    broker = SharedBroker(tmp_path, apache, namesrv, {**SMALL_FILES, **PATIENT}, settings)
    yield broker
    broker.kill()


def write(broker: RemotingConnection) -> None:
    """Something for each kind of file."""
    topics = {"plain": "", "batches": "+queue.type=BatchCQ", "compacted": "+cleanup.policy=COMPACTION"}
    for topic, attributes in topics.items():
        broker.call(
            UPDATE_AND_CREATE_TOPIC,
            b"",
            topic=topic,
            defaultTopic="TBW102",
            readQueueNums="1",
            writeQueueNums="1",
            perm="6",
            topicFilterType="SINGLE_TAG",
            topicSysFlag="0",
            order="false",
            **({"attributes": attributes} if attributes else {}),
        )
    for number in range(MESSAGES):
        send(broker, "plain", number, TAGS="tag", KEYS="key")
        send(broker, "plain", number, TIMER_DELAY_SEC="1000")
        send(broker, "plain", number, PREPARED, TRAN_MSG="true", PGROUP="producers")
        send(broker, "batches", number)
        send(broker, "compacted", number, KEYS="key")
    broker.call(
        POP_MESSAGE,
        consumerGroup="popping",
        topic="plain",
        queueId="-1",
        maxMsgNums="1",
        invisibleTime="100000",
        pollTime="0",
        bornTime="0",
        initMode="0",
    )


def send(broker: RemotingConnection, topic: str, number: int, flag: int = 0, **properties: str) -> None:
    fields = {"a": "producers", "b": topic, "c": "TBW102", "d": "1", "e": "0", "f": str(flag), "h": "0", "j": "0"}
    properties["UNIQ_KEY"] = f"7F00000100002A139A65{time.time_ns() % (1 << 48):012X}"
    born = str(time.time_ns() // 1_000_000)
    broker.call(SEND_MESSAGE_V2, b"%d" % number, g=born, i=packed(properties), k="false", m="false", **fields)


def test_what_cannot_be_read_is_refused_by_name(case: Case, broker: SharedBroker) -> None:
    broker.start("apache")
    write(broker.connection)
    broker.stop()
    with pytest.raises(ServerError) as refused:
        broker.start("saturn")
    damages, _ = broker.verify()
    for path, what in case.refused.items():
        assert path in {damage.path for damage in damages}
        (said,) = [part for part in str(refused.value).split(". ") if part.startswith(f"{path}: ")]
        assert what in said
    if case.remedied:
        for path in [*case.refused, "consumequeue"]:
            moved = broker.data_dir / path
            if moved.is_dir():
                shutil.rmtree(moved)
            else:
                moved.unlink(missing_ok=True)
        broker.start("saturn")
        bodies = [message.body for (topic, _, _), message in broker.messages().items() if topic == "plain"]
        assert bodies == [b"%d" % number for number in range(MESSAGES)]
