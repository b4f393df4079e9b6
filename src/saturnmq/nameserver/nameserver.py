"""The NameServer: its parts, and its settings, which change while it runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from saturnmq.disk.settingsfile import SettingsFile
from saturnmq.kernel import configfile
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import NameserverConfig
from saturnmq.kernel.configfile import IllegalConfig
from saturnmq.kernel.errors import InvalidParameter, NoPermission, SaturnError, ServiceUnavailable
from saturnmq.nameserver.kvconfig import KvConfigs
from saturnmq.nameserver.routes import RouteTable

log = logging.getLogger(__name__)

#: settings that nobody changes from afar, whatever configBlackList says (DefaultRequestProcessor.java)
_FIXED = frozenset({"configBlackList", "configStorePath", "kvConfigPath", "rocketmqHome"})
#: settings that are read at the start
_AT_START = ("listen_port", "max_kv_config_bytes")


class NotReady(SaturnError):
    """Brokers are still expected to register."""


class NameServer:
    """Owns the settings; the routes and the KV configs own themselves."""

    def __init__(self, config: NameserverConfig, clock: Clock, kv: KvConfigs, file: SettingsFile) -> None:
        self.config, self.kv, self._file, self._clock = config, kv, file, clock
        self.routes = RouteTable(config, clock)
        self._started_ms = clock.steady_ms()

    def listens_on(self, port: int) -> None:
        """The port that it got, which is what operators are shown."""
        self.config = self.routes.config = msgspec.structs.replace(self.config, listen_port=port)

    def check_ready(self) -> None:
        """Raises NotReady while brokers are still expected to register."""
        config = self.config
        if not config.need_wait_for_service:
            return
        passed_ms = self._clock.steady_ms() - self._started_ms
        if passed_ms < 1000 * config.wait_seconds_for_service:
            raise NotReady(
                f"name server not ready: it started {passed_ms} ms ago, and waits for brokers to register until "
                f"waitSecondsForService = {config.wait_seconds_for_service} s have passed (needWaitForService)"
            )

    def change_settings(self, changes: Mapping[str, str]) -> None:
        """Take them and keep them for the next start, or refuse all of them.

        Raises NoPermission, InvalidParameter, ServiceUnavailable.
        """
        fixed = _FIXED.union(self.config.config_black_list.split(";")) & changes.keys()
        if fixed:
            raise NoPermission(f"Can not update config in black list: {', '.join(sorted(fixed))} (configBlackList)")
        try:
            (config,) = configfile.changed([self.config], changes)
        except IllegalConfig as error:
            raise InvalidParameter(str(error)) from error
        assert isinstance(config, NameserverConfig), "each struct comes back as itself"
        if any(getattr(config, name) != getattr(self.config, name) for name in _AT_START):
            raise InvalidParameter(
                "listenPort and maxKvConfigBytes are read at the start: change the file, and restart"
            )
        known = {key: value for key, value in changes.items() if key in configfile.keys(NameserverConfig)}
        if others := changes.keys() - known.keys():
            log.warning("settings without effect in this version of SaturnMQ: %s", ", ".join(sorted(others)))
        if not known:
            return
        try:
            self._file.change(known)
        except OSError as error:
            raise ServiceUnavailable(
                f"the settings cannot be kept, nothing is changed: {error.filename}: {error.strerror} (configStorePath "
                "names another file)"
            ) from error
        self.config = self.routes.config = config
        log.info("settings changed: %s", known)

    def settings(self) -> str:
        """All of them, as Java properties."""
        return configfile.properties(msgspec.to_builtins(self.config))
