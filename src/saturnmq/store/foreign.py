"""What a RocketMQ server may have left in a data directory that SaturnMQ cannot read.

Reading half of a store would lose the other half in silence: a store with any of these is refused as a whole, and each
is named with what to do about it. Names and layouts as brokers of Apache RocketMQ 5.5.0 make them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from saturnmq.disk.port import Disk
from saturnmq.store.results import StoreRefused

_MADE_ANEW = "move it away: the queues are made anew from the commit log"
_CONFIG_REMEDY = (
    "convert it with Apache's `mqadmin rocksDBConfigToJson` and move it away, or move it away and create topics and "
    "groups again"
)


class Foreign(msgspec.Struct, frozen=True):
    """One thing that SaturnMQ cannot read."""

    #: below the data directory
    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}"


class _Format(msgspec.Struct, frozen=True):
    path: str
    there: Callable[[Disk, str], bool]
    what: str
    remedy: str


def _is_rocksdb(disk: Disk, path: str) -> bool:
    return disk.exists(f"{path}/CURRENT")


def _holds_rocksdb_data(disk: Disk, path: str) -> bool:
    """Apache makes some of its RocksDB stores at every start, whether it uses them or not: without tables, and with an
    empty write-ahead log, they hold nothing."""
    return any(
        name.endswith(".sst") or (name.endswith(".log") and _size(disk, f"{path}/{name}") > 0)
        for name in disk.list(path)
    )


def _holds_topics(disk: Disk, path: str) -> bool:
    return any(disk.list(f"{path}/{topic}") for topic in disk.list(path))


def _size(disk: Disk, path: str) -> int:
    file = disk.open(path)
    try:
        return file.size()
    finally:
        file.close()


_FORMATS = (
    _Format("consumequeue", _is_rocksdb, "a RocksDB store of consume queues (storeType=defaultRocksDB)", _MADE_ANEW),
    _Format(
        "consumequeue_rocksdb",
        _is_rocksdb,
        "a RocksDB store of consume queues (useSeparateStorePathForRocksdbCQ=true)",
        _MADE_ANEW,
    ),
    _Format(
        "consumequeue_ext",
        _holds_topics,
        "extensions of consume queues (enableConsumeQueueExt=true), in whose place the queues hold no tags",
        "move it and consumequeue away: the queues are made anew from the commit log",
    ),
    _Format(
        "batchconsumequeue",
        _holds_topics,
        "queues of BatchCQ topics, whose records hold many messages each",
        "drain these topics and delete them with Apache's broker, then move the directory away",
    ),
    _Format(
        "compaction/compactionLog",
        _holds_topics,
        "logs of compaction topics (cleanup.policy=COMPACTION)",
        "copy what these topics hold to others and delete them with Apache's broker, then move the directory "
        "compaction away",
    ),
    _Format(
        "rocksdbstore",
        _holds_rocksdb_data,
        "a RocksDB store of the index, delayed messages or transactions (indexRocksDBEnable, timerRocksDBEnable or "
        "transRocksDBEnable=true)",
        "let Apache's broker deliver and settle what waits there, or give it up, then move the directory away",
    ),
    _Format(
        "kvStore",
        _holds_rocksdb_data,
        "a RocksDB store of messages that pop consumers have in flight (popConsumerKVServiceEnable=true)",
        "let Apache's broker bring them into the commit log (request POP_ROLLBACK, code 200056), then move the "
        "directory away",
    ),
    *(
        _Format(f"config/{name}", _is_rocksdb, f"a RocksDB store of {what}", _CONFIG_REMEDY)
        for name, what in (
            ("topics", "topics"),
            ("subscriptionGroups", "consumer groups"),
            ("consumerOffsets", "consumer offsets"),
            ("metadata", "topics, consumer groups and their offsets"),
            ("rdb", "topics, consumer groups and their offsets (configManagerVersion=v2)"),
        )
    ),
    *(
        _Format(
            f"config/{name}",
            _is_rocksdb,
            f"a RocksDB store of {what} of access control",
            "move it away; this version of SaturnMQ lets everybody in",
        )
        for name, what in (("users", "users"), ("acls", "rules"))
    ),
    _Format(
        "config/tieredStoreMetadata.json",
        lambda disk, path: disk.exists(path),
        "the list of messages in tiered storage (TieredMessageStore)",
        "SaturnMQ serves what stands in the commit log; move the file away to give up what does not",
    ),
)


def find(disk: Disk, root: str = "") -> list[Foreign]:
    """Everything in a data directory that is not ours to read. Raises OSError."""
    found = [
        Foreign(known.path, known.what, known.remedy) for known in _FORMATS if known.there(disk, root + known.path)
    ]
    return [*found, *_dledger_logs(disk, root)]


def _dledger_logs(disk: Disk, root: str) -> Iterable[Foreign]:
    for name in disk.list(root):
        if name.startswith("dledger-") and disk.list(f"{root}{name}/data"):
            yield Foreign(
                name,
                "a DLedger commit log (enableDLegerCommitLog=true)",
                "its messages can only be copied to a SaturnMQ server by a consumer and a producer",
            )


def refuse(disk: Disk) -> None:
    """Raises StoreRefused when the data directory holds anything that we cannot read, OSError."""
    found = find(disk)
    if found:
        raise StoreRefused(
            "the data directory holds what SaturnMQ cannot read, so nothing of it is opened. "
            + ". ".join(map(str, found))
        )
