"""Data directories of Apache RocketMQ 5.5.0 (tests/vectors/store/foreign) that SaturnMQ cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_stage import Stage

from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.store import foreign
from saturnmq.store.results import StoreRefused

VECTORS = Path(__file__).parents[2] / "vectors" / "store" / "foreign"


def directory(name: str) -> SimulatedDisk:
    """Files with these names and, up to a page, these sizes; zeros in them."""
    disk = SimulatedDisk()
    for line in (VECTORS / f"{name}.txt").read_text().splitlines():
        path, _, size = line.rpartition(" ")
        disk.mkdir(path.rpartition("/")[0])
        file = disk.create(path)
        file.truncate(min(int(size), 4096))
        file.close()
    return disk


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("plain", []),
        (
            "rocksdb",
            ["consumequeue", "rocksdbstore", "config/topics", "config/subscriptionGroups", "config/consumerOffsets"],
        ),
        ("single-rocksdb", ["consumequeue", "config/metadata"]),
        ("dledger", ["dledger-n0"]),
        ("tiered", ["consumequeue_rocksdb", "config/rdb", "config/tieredStoreMetadata.json"]),
        ("batch-compaction-ext", ["consumequeue_ext", "batchconsumequeue", "compaction/compactionLog"]),
    ],
)
def test_what_apaches_brokers_leave(name: str, paths: list[str]) -> None:
    disk = directory(name)
    assert [found.path for found in foreign.find(disk)] == paths
    if paths:
        with pytest.raises(StoreRefused) as refused:
            Stage(disk).open()
        for path in paths:
            assert f"{path}: " in str(refused.value)
    else:
        foreign.refuse(disk)
    assert disk.open_files == 0


@pytest.mark.parametrize("path", ["rocksdbstore", "kvStore"])
def test_rocksdb_stores_that_were_never_used_are_no_hindrance(path: str) -> None:
    """Apache 5.5.0 makes rocksdbstore at every start."""
    disk = SimulatedDisk()
    disk.mkdir(path)
    for name in ("CURRENT", "MANIFEST-000005", "LOG"):
        disk.replace_file(f"{path}/{name}", b"x")
    disk.create(f"{path}/000004.log").close()
    assert foreign.find(disk) == []
    disk.replace_file(f"{path}/000004.log", b"x")
    assert [found.path for found in foreign.find(disk)] == [path]
    disk.replace_file(f"{path}/000004.log", b"")
    disk.replace_file(f"{path}/000009.sst", b"x")
    assert [found.path for found in foreign.find(disk)] == [path]


@pytest.mark.parametrize("path", ["config/users", "config/acls"])
def test_access_control(path: str) -> None:
    disk = SimulatedDisk()
    disk.mkdir(path)
    disk.create(f"{path}/CURRENT").close()
    (found,) = foreign.find(disk)
    assert found.path == path
    assert "RocksDB" in str(found)


def test_refusal_leaves_everything_as_it_is() -> None:
    disk = directory("dledger")
    before = len(disk.events)
    with pytest.raises(StoreRefused, match="dledger-n0: a DLedger commit log"):
        Stage(disk).open()
    assert len(disk.events) == before
    assert not disk.locks
