"""How the broker is doing, in the words of Apache's tools (AdminBrokerProcessor#prepareRuntimeInfo).

The keys are those that mqadmin, the dashboard and exporters look for. What Apache counts and we do not have, queues
before thread pools, a transient store pool, locks of the page cache, is what Apache says of it at rest.
"""

from __future__ import annotations

from saturnmq.broker.broker import Broker
from saturnmq.disk.port import Space
from saturnmq.kernel.later import Reply, after
from saturnmq.kernel.topic import SCHEDULE_TOPIC
from saturnmq.wire import record
from saturnmq.wire.remoting.command import VERSION

#: as what we are known (MQVersion); see wire.remoting.command.VERSION
VERSION_NAME = "V5_3_3"

_AT_REST = {
    "brokerActive": "true",
    "brokerVersion": str(VERSION),
    "brokerVersionDesc": VERSION_NAME,
    "pageCacheLockTimeMills": "0",
    "startAcceptSendRequestTimeStamp": "0",
    "remainTransientStoreBufferNumbs": str(2**31 - 1),
    "remainHowManyDataToCommit": "0 B",
    "putMessageEntireTimeMax": "0",
    "putMessageDistributeTime": "[<=0ms]:0 [0~10ms]:0 [10~50ms]:0 [50~100ms]:0 [100~200ms]:0 [200~500ms]:0 "
    "[500ms~1s]:0 [1~2s]:0 [2~3s]:0 [3~4s]:0 [4~5s]:0 [5~10s]:0 [10s~]:0 ",
    "putLatency99": "0.00",
    "putLatency999": "0.00",
    "getMessageEntireTimeMax": "0",
    "dispatchMaxBuffer": "0",
    "EndTransactionQueueSize": "0",
    "EndTransactionThreadPoolQueueCapacity": "0",
} | {
    f"{pool}ThreadPoolQueue{what}": "0"
    for pool in ("send", "pull", "litePull", "query", "ack")
    for what in ("Size", "Capacity", "HeadWaitTimeMills")
}
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def runtime_info(broker: Broker) -> Reply[dict[str, str]]:
    """The table of GET_BROKER_RUNTIME_INFO. Later when the oldest message must be read from the disk."""
    table = {**_AT_REST, **_counted(broker), **_stored(broker), **_delayed(broker), **broker.timers.runtime()}

    def oldest(data: bytes | None) -> dict[str, str]:
        return {**table, "earliestMessageTimeStamp": str(record.decode(data).stored_ms if data else -1)}

    return after(broker.store.record_at(broker.store.first), oldest)


def _counted(broker: Broker) -> dict[str, str]:
    stats, store, now_ms = broker.stats, broker.store, broker.clock.now_ms()
    found, missed = stats.per_second("found"), stats.per_second("missed")
    seconds = (now_ms - stats.started_ms) // 1000
    table = {
        "bootTimestamp": str(stats.started_ms),
        "runtime": f"[ {seconds // 86_400} days, {seconds // 3600 % 24} hours, {seconds // 60 % 60} minutes, "
        f"{seconds % 60} seconds ]",
        "putMessageTimesTotal": str(store.appended),
        "putMessageFailedTimes": str(store.refused),
        "putMessageSizeTotal": str(store.appended_bytes),
        "putMessageAverageSize": str(store.appended_bytes / max(1, store.appended)),
        "putTps": _rates(stats.per_second("appended")),
        "getFoundTps": _rates(found),
        "getMissTps": _rates(missed),
        "getTotalTps": _rates([found + missed for found, missed in zip(found, missed, strict=True)]),
        "getTransferredTps": _rates(stats.per_second("taken")),
    }
    for name, key in (("sent", "msgPutTotal"), ("taken", "msgGetTotal")):
        yesterday, today, now = stats.by_day(name)
        table[f"{key}YesterdayMorning"], table[f"{key}TodayMorning"] = str(yesterday), str(today)
        table[f"{key}TodayNow"] = str(now)
    return table


def _stored(broker: Broker) -> dict[str, str]:
    store = broker.store
    root, logs = store.space.root, store.space.logs
    return {
        "dispatchBehindBytes": str(store.unseen_bytes),
        "remainHowManyDataToFlush": _size(store.end - store.flushed),
        "commitLogMinOffset": str(store.first if store.end else -1),
        "commitLogMaxOffset": str(store.end),
        "commitLogDirCapacity": f"Total : {_size(root.used + root.free)}, Free : {_size(root.free)}.",
        "commitLogDiskRatio": str(min(map(_ratio, logs))),
        **{f"commitLogDiskRatio_{space.path}": str(_ratio(space)) for space in logs},
        "consumeQueueDiskRatio": str(_ratio(root)),
    }


def _delayed(broker: Broker) -> dict[str, str]:
    """How far each level in use is delivered, and how far it goes."""
    return {
        f"scheduleMessageOffset_{level}": f"{offset},{broker.store.max_offset(SCHEDULE_TOPIC, level - 1)}"
        for level, offset in broker.delays.offsets().items()
    }


def _rates(rates: list[float] | tuple[float, ...]) -> str:
    return " ".join(map(str, rates))


def _ratio(space: Space) -> float:
    return space.used_percent / 100


def _size(count: int) -> str:
    """`1.5 MiB` (MixAll#humanReadableByteCount)."""
    if count < 1024:
        return f"{count} B"
    value, unit = count / 1024, 0
    while value >= 1024 and unit + 1 < len(_UNITS):
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}"
