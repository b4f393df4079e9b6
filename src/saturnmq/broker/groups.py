"""The consumer groups of a broker."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import msgspec

from saturnmq.broker.attributes import GROUP_ATTRIBUTES, alter
from saturnmq.broker.jsonfile import JsonFile
from saturnmq.disk.port import Disk
from saturnmq.kernel.clock import Background, Clock
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import IllegalGroup
from saturnmq.kernel.later import Reply
from saturnmq.kernel.topic import DataVersion, GroupConfig, check_group, is_system_group
from saturnmq.wire.remoting.bodies import encode

log = logging.getLogger(__name__)

#: groups that every broker has (SubscriptionGroupManager#init; the names are in common/MixAll.java)
SYSTEM_GROUPS = (
    "TOOLS_CONSUMER",
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PULL",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    "CID_RMQ_SYS_TRANS",
)

#: bit of a forbiddenTable entry: the group may not read the topic (1 << PermName.INDEX_PERM_READ)
READ_FORBIDDEN = 4


class _File(msgspec.Struct, rename="camel"):
    """config/subscriptionGroup.json"""

    subscription_group_table: dict[str, GroupConfig] = {}
    #: group → topic → bits; only mqadmin writes it
    forbidden_table: dict[str, dict[str, int]] = {}
    data_version: DataVersion = msgspec.field(default_factory=DataVersion)


class GroupTable:
    """Owns the group configs and `config/subscriptionGroup.json` (subscription/SubscriptionGroupManager.java)."""

    def __init__(self, config: BrokerConfig, disk: Disk, clock: Clock, background: Background | None = None) -> None:
        self._clock = clock
        self.configure(config)
        #: that there are as many as may be was said
        self._is_full = False
        self._groups = {name: GroupConfig(group_name=name) for name in SYSTEM_GROUPS}
        self._forbidden: dict[str, dict[str, int]] = {}
        self._file = JsonFile(disk, clock, "subscriptionGroup.json", self._encode, background=background)
        self.version = DataVersion(timestamp=clock.now_ms())

    @property
    def configs(self) -> Mapping[str, GroupConfig]:
        return self._groups

    def load(self) -> None:
        """Raises ValueError when the file and its .bak are broken."""
        stored = self._file.read(_File)
        if stored is not None:
            self._groups.update(stored.subscription_group_table)
            self._forbidden = stored.forbidden_table
            self.version = stored.data_version

    def configure(self, config: BrokerConfig) -> None:
        """Whether groups are made by whoever names them, and how many."""
        self._creates = config.auto_create_subscription_group or config.dev_auto_create
        self._most = config.max_group_nums

    def write(self) -> Reply[None]:
        return self._file.write()

    def exists(self, name: str) -> bool:
        return name in self._groups

    def get(self, name: str) -> GroupConfig | None:
        """The group; one that is not there is created when autoCreateSubscriptionGroup is on, else None."""
        group = self._groups.get(name)
        if group is None and (self._creates or is_system_group(name)):
            try:
                check_group(name)
            except IllegalGroup:
                return None
            if len(self._groups) >= self._most:
                if not self._is_full:
                    log.warning("made no group %s: there are %d (maxGroupNums)", name, self._most)
                self._is_full = True
                return None
            group = GroupConfig(group_name=name)
            self.put(group)
        return group

    def put(self, group: GroupConfig) -> None:
        """Add or replace it as it is."""
        log.info("group %s: %s", "changed" if group.group_name in self._groups else "created", group)
        self._groups[group.group_name] = group
        self._changed()

    def alter(self, groups: Iterable[GroupConfig]) -> None:
        """Add or replace them, all or none; their attributes are changes (`+key`, `-key`) to what is there. Raises
        IllegalGroup, IllegalAttribute."""
        for group in [self._altered(group) for group in groups]:
            self.put(group)

    def _altered(self, group: GroupConfig) -> GroupConfig:
        check_group(group.group_name)
        current = self._groups.get(group.group_name)
        attributes = alter(GROUP_ATTRIBUTES, None if current is None else current.attributes, group.attributes)
        return msgspec.structs.replace(group, attributes=attributes)

    def delete(self, name: str) -> None:
        """Forget it, with what it may not read."""
        removed, allowed = self._groups.pop(name, None), self._forbidden.pop(name, None)
        if removed is not None or allowed is not None:
            log.info("group %s is deleted", name)
            self._changed()

    @property
    def forbidden(self) -> Mapping[str, Mapping[str, int]]:
        """Group to topic to bits."""
        return self._forbidden

    def forbid(self, group: str, topic: str, *, readable: bool) -> None:
        """Let the group read the topic, or not."""
        topics = self._forbidden.setdefault(group, {})
        bits = topics.get(topic, 0) & ~READ_FORBIDDEN | (0 if readable else READ_FORBIDDEN)
        if bits:
            topics[topic] = bits
        else:
            topics.pop(topic, None)
        if not topics:
            del self._forbidden[group]
        log.info("group %s %s read %s", group, "may" if readable else "may not", topic)
        self._changed()

    def may_read(self, group: str, topic: str) -> bool:
        """False when an operator forbade the group to read the topic."""
        forbidden = self._forbidden.get(group)
        return forbidden is None or not forbidden.get(topic, 0) & READ_FORBIDDEN

    def _changed(self) -> None:
        self.version.bump(self._clock.now_ms())
        self._file.changed()

    def _encode(self) -> bytes:
        return encode(_File(self._groups, self._forbidden, self.version))
