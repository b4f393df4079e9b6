"""Settings that are changed while a server runs are there after a restart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from harness.admin import AdminError, RemotingConnection
from harness.servers import only_saturn

from saturnmq.kernel.configfile import parse_properties
from saturnmq.testing.server import LocalServer

UPDATE_BROKER_CONFIG, GET_BROKER_CONFIG = 25, 26

pytestmark = only_saturn


def settings(address: str, change: str = "") -> Mapping[str, str]:
    connection = RemotingConnection(address)
    try:
        if change:
            connection.call(UPDATE_BROKER_CONFIG, change.encode())
        return parse_properties(connection.call(GET_BROKER_CONFIG).decode())
    finally:
        connection.close()


def test_they_are_kept_in_the_file_that_was_read(tmp_path: Path) -> None:
    config = tmp_path / "broker.conf"
    config.write_text("# ours\nfileReservedTime = 48  \nbrokerName=b\n")
    with LocalServer("-c", str(config), data_dir=tmp_path / "data") as local:
        before = settings(local.broker)
        assert (before["fileReservedTime"], before["listenPort"]) == ("48", local.broker.rpartition(":")[2])
        assert before["storePathRootDir"] == str(tmp_path / "data")
        assert settings(local.broker, "fileReservedTime=24\nautoCreateTopicEnable=false")["fileReservedTime"] == "24"
    assert config.read_text() == "# ours\nfileReservedTime=24\nbrokerName=b\nautoCreateTopicEnable=false\n"
    with LocalServer("-c", str(config), data_dir=tmp_path / "data") as local:
        after = settings(local.broker)
        assert (after["fileReservedTime"], after["autoCreateTopicEnable"]) == ("24", "false")


def test_without_a_file_they_are_kept_in_the_data_directory(tmp_path: Path) -> None:
    with LocalServer(data_dir=tmp_path) as local:
        assert settings(local.broker, "maxMessageSize=1000")["maxMessageSize"] == "1000"
    with LocalServer(data_dir=tmp_path) as local:
        assert settings(local.broker)["maxMessageSize"] == "1000"
    with LocalServer("--set", "maxMessageSize=2000", data_dir=tmp_path) as local:
        assert settings(local.broker)["maxMessageSize"] == "2000", "whoever starts it has the last word"


def test_what_is_read_at_the_start_only_is_refused(tmp_path: Path) -> None:
    with LocalServer(data_dir=tmp_path) as local, pytest.raises(AdminError, match="flushDiskType: read at the start"):
        settings(local.broker, "flushDiskType=SYNC_FLUSH")
