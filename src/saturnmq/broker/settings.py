"""The settings of a running broker: told to operators, and changed by them (common/Configuration.java)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec

from saturnmq.kernel import configfile
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import BrokerConfig, StoreConfig
from saturnmq.kernel.configfile import IllegalConfig
from saturnmq.kernel.errors import InvalidParameter, NoPermission
from saturnmq.kernel.topic import TRACE_TOPIC, DataVersion

log = logging.getLogger(__name__)

#: settings that take effect while the broker runs; all others are read at its start
CHANGEABLE = frozenset(
    {
        "brokerPermission", "autoCreateTopicEnable", "autoCreateSubscriptionGroup", "defaultTopicQueueNums",
        "maxTopicQueueNums", "maxQueueNums", "enableMixedMessageType", "splitMetadataSize",
        "registerNameServerPeriod", "longPollingEnable", "litePullMessageEnable", "enablePropertyFilter",
        "maxTransferCountOnMessageInMemory", "maxTransferBytesOnMessageInMemory",
        "popFromRetryProbability", "initPopOffsetByCheckMsgInMem",
        "enablePopMessageThreshold", "popInflightMessageThreshold",
        "fileReservedTime", "deleteWhen", "diskMaxUsedSpaceRatio", "cleanFileForciblyEnable",
        "diskSpaceCleanForciblyRatio", "diskSpaceWarningLevelRatio", "diskMinFreeBytes", "cleanResourceInterval",
        "deleteFileBatchMax", "deleteCommitLogFilesInterval",
        "maxMessageSize", "maxMsgsNumBatch", "defaultQueryMaxNum",
        "timerMaxDelaySec", "timerCongestNumEachSlot", "timerFlushIntervalMs", "timerStopEnqueue", "timerStopDequeue",
        "appendTopicForTimerDeleteKey", "recallMessageEnable", "allowRecallWhenBrokerNotWriteable",
        "rejectTransactionMessage", "transactionTimeOut", "transactionCheckMax", "transactionCheckInterval",
        "transactionOpMsgMaxSize", "transactionOpBatchInterval",
    }
)  # fmt: skip
#: what no operator may change over the wire (AdminBrokerProcessor#initConfigBlackList)
_BLACK_LIST = frozenset({"brokerConfigPath", "rocketmqHome", "configBlackList"})
#: settings of Apache's that have one value here, and that its tools ask for
_FIXED = {
    "brokerRole": "ASYNC_MASTER",
    "msgTraceTopicName": TRACE_TOPIC,
    "slaveReadEnable": "false",
    "storeType": "default",
}


class Settings:
    """Owns what is in force. `apply` takes new settings over, raising ValueError before it does; `keep`, set by who
    knows the file, writes changes where the next start finds them, raising OSError."""

    def __init__(
        self,
        broker: BrokerConfig,
        store: StoreConfig,
        clock: Clock,
        apply: Callable[[BrokerConfig, StoreConfig], None],
    ) -> None:
        self._broker, self._store, self._clock, self._apply = broker, store, clock, apply
        self.version = DataVersion(timestamp=clock.now_ms())
        #: what stands for values that leave it open, set by who knows: where the broker listens, and stores
        self.actual: Mapping[str, object] = {}
        self.keep: Callable[[Mapping[str, str]], None] = lambda changes: None

    def text(self) -> str:
        """All of them as Java properties, sorted by key."""
        values = {**_FIXED, **msgspec.to_builtins(self._store), **msgspec.to_builtins(self._broker), **self.actual}
        return configfile.properties(values)

    def change(self, text: str) -> list[str]:
        """Put changes in force and keep them, all or none. Gives the keys that nobody knows, which have no effect.

        Raises NoPermission, InvalidParameter.
        """
        changes = configfile.parse_properties(text)
        if not (_BLACK_LIST | set(self._broker.config_black_list.split(";"))).isdisjoint(changes):
            raise NoPermission("Can not update config in black list.")
        known = configfile.keys(BrokerConfig, StoreConfig)
        unknown = sorted(changes.keys() - known.keys())
        try:
            broker, store = configfile.changed([self._broker, self._store], changes)
            assert isinstance(broker, BrokerConfig)
            assert isinstance(store, StoreConfig)
            changes = self._changes(broker, store)
            if changes.keys() - CHANGEABLE:
                raise IllegalConfig(
                    f"{', '.join(sorted(changes.keys() - CHANGEABLE))}: read at the start only; change the "
                    "configuration file and restart the broker"
                )
            self._apply(broker, store)
        except (IllegalConfig, ValueError) as error:
            raise InvalidParameter(f"{error}; nothing was changed") from None
        if unknown:
            log.warning("settings without effect in this version of SaturnMQ: %s", ", ".join(unknown))
        if changes:
            self._broker, self._store = broker, store
            self.version.bump(self._clock.now_ms())
            log.info("settings changed: %s", changes)
            self._write(changes)
        return unknown

    def _changes(self, broker: BrokerConfig, store: StoreConfig) -> dict[str, str]:
        """What differs from what is in force."""
        before = {**msgspec.to_builtins(self._store), **msgspec.to_builtins(self._broker)}
        after = {**msgspec.to_builtins(store), **msgspec.to_builtins(broker)}
        return {
            key: str(value).lower() if isinstance(value, bool) else str(value)
            for key, value in after.items()
            if value != before[key]
        }

    def _write(self, changes: Mapping[str, str]) -> None:
        try:
            self.keep(changes)
        except OSError as error:
            log.error("the settings are in force, but a restart forgets them: %s: %s", error.filename, error.strerror)
