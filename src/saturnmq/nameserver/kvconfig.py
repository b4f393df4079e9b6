"""Keys and values that tools keep in a NameServer, by namespace (namesrv/kvconfig/KVConfigManager.java)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from saturnmq.disk.port import Disk
from saturnmq.kernel.errors import ProtocolError, ServiceUnavailable, SystemBusy
from saturnmq.wire.remoting import json

log = logging.getLogger(__name__)

#: topic → `broker:queues;broker:queues`, which keeps the order of queues for those who send in it
ORDER_TOPICS = "ORDER_TOPIC_CONFIG"


class _File(msgspec.Struct, rename="camel"):
    """kvConfig.json"""

    config_table: dict[str, dict[str, str]] = {}


class KvConfigs:
    """Owner of the pairs and of their file. A change is on disk before it is answered, or it is not made."""

    def __init__(self, disk: Disk, path: str, most_bytes: int) -> None:
        """Raises ValueError when the file is broken."""
        self._disk, self._path, self._most_bytes = disk, path, most_bytes
        self._namespaces = self._read()

    def get(self, namespace: str, key: str) -> str | None:
        return self._namespaces.get(namespace, {}).get(key)

    def namespace(self, namespace: str) -> Mapping[str, str] | None:
        """None: nothing was ever put there."""
        return self._namespaces.get(namespace)

    def put(self, namespace: str, key: str, value: str) -> None:
        """Raises SystemBusy when there is too much already, ServiceUnavailable when it cannot be written."""
        self._replace(namespace, {**self._namespaces.get(namespace, {}), key: value})
        log.info("KV config: %s/%s is %s", namespace, key, value)

    def delete(self, namespace: str, key: str) -> None:
        """Also what is not there. Raises ServiceUnavailable when it cannot be written."""
        if self.get(namespace, key) is not None:
            pairs = self._namespaces[namespace]
            self._replace(namespace, {name: value for name, value in pairs.items() if name != key})
            log.info("KV config: %s/%s is deleted", namespace, key)

    def _replace(self, namespace: str, pairs: dict[str, str]) -> None:
        changed = {**self._namespaces, namespace: pairs}
        data = json.write(_File(changed))
        if len(data) > self._most_bytes:
            raise SystemBusy(
                f"kvConfig.json would have {len(data)} bytes, the limit is {self._most_bytes} (maxKvConfigBytes): "
                "delete what nobody needs, or raise it"
            )
        try:
            self._disk.replace_file(self._path, data)
        except OSError as error:
            raise ServiceUnavailable(f"{self._path} cannot be written, nothing is changed: {error.strerror}") from error
        self._namespaces = changed

    def _read(self) -> dict[str, dict[str, str]]:
        if not self._disk.exists(self._path):
            return {}
        data = self._disk.read_file(self._path)
        try:
            return msgspec.convert(json.parse(data, most_tokens=len(data)), _File, strict=False).config_table
        except (ProtocolError, msgspec.ValidationError) as error:
            raise ValueError(f"{self._path} cannot be read: {error}; mend it or remove it") from error
