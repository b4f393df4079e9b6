"""A NameServer without sockets, disk or real time, for tests that drive it request by request."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from saturnmq.disk.settingsfile import SettingsFile
from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import NameserverConfig
from saturnmq.kernel.errors import SaturnError
from saturnmq.nameserver import remoting
from saturnmq.nameserver.kvconfig import KvConfigs
from saturnmq.nameserver.nameserver import NameServer
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.offline import Asked, OfflineConnection
from saturnmq.wire.remoting.codes import ResponseCode, response_code
from saturnmq.wire.remoting.command import Command, Response

KV_FILE, SETTINGS_FILE = "namesrv/kvConfig.json", "namesrv/namesrv.properties"


def name_server(clock: Clock, disk: SimulatedDisk | None = None, config: NameserverConfig | None = None) -> NameServer:
    disk, config = disk or SimulatedDisk(), config or NameserverConfig()
    kv = KvConfigs(disk, KV_FILE, config.max_kv_config_bytes)
    return NameServer(config, clock, kv, SettingsFile(disk, SETTINGS_FILE))


class OfflineNameServer:
    """A NameServer on a SimulatedDisk, with its Remoting table."""

    def __init__(self, disk: SimulatedDisk | None = None, **settings: object) -> None:
        self.clock, self.disk = VirtualClock(), disk or SimulatedDisk()
        self.server = name_server(self.clock, self.disk, NameserverConfig(**settings))  # type: ignore[arg-type]
        self.handlers = remoting.table(self.server)
        self.connection = OfflineConnection(local="127.0.0.1:9876")

    def ask(
        self,
        code: int,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
        connection: RemotingConnection | None = None,
        version: int = 479,
    ) -> Asked:
        command = Command(int(code), 1, fields=dict(fields or {}), body=body, version=version)
        try:
            return Asked(self.handlers[command.code](command, connection or self.connection))
        except SaturnError as error:
            return Asked(Response(response_code(error), str(error)))
        except msgspec.ValidationError as error:  # as the connection does
            return Asked(Response(ResponseCode.SYSTEM_ERROR, str(error)))
