"""What the command line said, and the settings that follow from it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from saturnmq.kernel import configfile
from saturnmq.kernel.config import StoreConfig
from saturnmq.kernel.configfile import IllegalConfig
from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.host import Address
from saturnmq.wire.remoting import json

logger = logging.getLogger("saturnmq")

#: listeners that may be advertised under another address
ADVERTISED = ("grpc", "broker", "proxy-remoting")
#: in JSON, where it is not in a string
_COMMENT = re.compile(r'(?P<string>"(?:[^"\\]|\\.)*")|/\*.*?\*/|//[^\n]*', re.DOTALL)
#: one word for the whole loose bundle
DEV_SETTINGS = {"flushDiskType": "ASYNC_FLUSH", "devAutoCreate": "true"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line said."""

    config: Path | None = None
    #: `key=value`
    settings: list[str] = field(default_factory=list)
    host: str = "127.0.0.1"
    #: by listener; None is the setting's, 0 any free port
    ports: Mapping[str, int | None] = field(default_factory=dict)
    #: rmq-proxy.json
    proxy_config: Path | None = None
    data_dir: Path | None = None
    dev: bool = False
    #: `[listener=]host[:port]`
    advertise: list[str] = field(default_factory=list)
    ready_file: Path | None = None
    print_config: bool = False
    test_clock: bool = False
    #: processes that share the ports
    workers: int = 1
    #: of one of them: its number, and the descriptors of its `net.passing.Inlet`
    worker: tuple[int, int, int] | None = None

    def values(self, *structs: type[msgspec.Struct]) -> dict[str, str]:
        """From the file, the environment and the command line, the later ones winning. Warns of what has no effect.

        Raises IllegalConfig.
        """
        values: dict[str, str] = {}
        for path, parse in ((self.config, configfile.parse_properties), (self.proxy_config, _parse_json)):
            if path is not None:
                try:
                    values |= parse(path.read_text(errors="replace"))
                except OSError as error:
                    raise IllegalConfig(f"the file {path} cannot be read: {error.strerror}") from error
                except ProtocolError as error:
                    raise IllegalConfig(f"the file {path} is no JSON: {error}") from error
        values |= configfile.from_environment(os.environ, *structs)
        if self.dev:
            values |= DEV_SETTINGS
        for setting in self.settings:
            key, equals, value = setting.partition("=")
            if not equals:
                raise IllegalConfig(f"--set {setting}: write key=value")
            values[key] = value
        if self.data_dir is not None and StoreConfig in structs:
            values["storePathRootDir"] = str(self.data_dir)
        configfile.refuse_promises(values)
        for warning in configfile.warnings(values, os.environ, *structs):
            logger.warning("%s", warning)
        return values

    def advertised(self, listener: str) -> Address | None:
        """What clients are told to dial instead of what they dialled; port 0 stands for the listener's own.

        Raises IllegalConfig.
        """
        found = None
        for item in self.advertise:
            name, named, text = item.rpartition("=")
            if named and name not in ADVERTISED:
                raise IllegalConfig(f"--advertise {item}: the listener is one of {', '.join(ADVERTISED)}")
            try:
                address = _address(text)
            except ValueError:
                raise IllegalConfig(f"--advertise {item}: {text!r} is neither a host nor host:port") from None
            if address.port and not named:
                raise IllegalConfig(f"--advertise {item}: a port belongs to one listener, as in grpc={item}")
            if name in ("", listener):
                found = address
        return found


def _parse_json(text: str) -> dict[str, str]:
    """Settings as fastjson reads them, with comments. Raises ProtocolError."""
    settings = json.parse(_COMMENT.sub(lambda found: found["string"] or " ", text).encode())
    if not isinstance(settings, dict):
        raise ProtocolError("it holds no object of settings")
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in settings.items()
        if value is not None
    }


def _address(text: str) -> Address:
    """`host` or `host:port`; an IPv6 host with a port stands in brackets. Raises ValueError."""
    if text.count(":") == 1 or "]:" in text:
        return Address.parse(text)
    return Address.parse(f"{text}:0")
