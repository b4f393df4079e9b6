"""What must hold when a broker has opened a disk, and what `admin verify` must say of one."""

from __future__ import annotations

from campaign.history import PAD, Facts, Flip, History, Place, must, name
from campaign.process import HOUR_MS, REPORTS, TOPICS, Process, Settings
from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.kernel import properties
from saturnmq.kernel.message import StoredMessage
from saturnmq.store.dispatch import is_queued
from saturnmq.store.findings import Finding
from saturnmq.store.verify import verify


def check(process: Process, history: History) -> Facts:
    """Gives what was read and is durable: nothing of it may be gone later."""
    store = process.store
    process.clock.run_soon()
    # what the broker itself appends from now on may be in the log and not yet to be seen
    durable = store.flushed
    end = durable if process.settings.sync else store.end
    queues = {
        (topic, queue_id): process.read(topic, queue_id)
        for topic in sorted({*store.topics(), *process.broker.topics.configs})
        for queue_id in store.queues(topic)
    }
    held = {
        (topic, queue_id, stored.queue_offset): stored
        for (topic, queue_id), messages in queues.items()
        for stored in messages
        if topic in TOPICS
    }
    for place, stored in held.items():
        must(stored.body in history.bodies, 1, f"{place} holds {name(stored.body)}, which nobody sent")
        if stored.body not in history.damaged:  # no CRC covers properties
            pad = properties.decode(stored.properties).get(PAD)
            must(pad == history.bodies[stored.body], 1, f"{name(stored.body)} of {place} has other properties")
        early_ms = history.due.get(stored.body, 0) - stored.stored_ms
        must(early_ms <= 0, 6, f"{name(stored.body)} came {early_ms} ms early")
    for place, body in history.sent.items():
        if place not in held or held[place].body != body:
            _check_gone(process, history, place, body, held.get(place))
    in_queues = {one.commit_log_offset for messages in queues.values() for one in messages}
    _check_log(process, {position for position in in_queues if position < end}, end)
    _check_offsets(process, history)
    must(history.flipped or not REPORTS.texts, 9, f"called damage after crashes alone: {REPORTS.texts}")
    found = _facts(held, durable)
    history.compare(found)
    return found


def _facts(held: dict[Place, StoredMessage], durable: int) -> Facts:
    """Of what is not yet durable nobody was promised anything."""
    facts = Facts()
    for place, stored in held.items():
        if stored.commit_log_offset < durable:
            facts.seen[place] = stored.body
            facts.stored_ms[stored.body] = stored.stored_ms
            facts.came.add(name(stored.body))
            facts.log[stored.body] = (stored.commit_log_offset, stored.size)
    return facts


def _check_gone(process: Process, history: History, place: Place, body: bytes, instead: StoredMessage | None) -> None:
    """An acknowledged message is not at its place."""
    if body in history.damaged and instead is None:
        must(is_deleted(process, history, place, body) or _is_reported(process, history, place, body), 8, name(body))
        return
    now = "nothing" if instead is None else name(instead.body)
    must(is_deleted(process, history, place, body), 1, f"{place} was {name(body)}, now {now}")


def is_old(process: Process, history: History, body: bytes) -> bool:
    """It may be deleted, at any time."""
    now_ms = process.clock.now_ms()
    return now_ms - history.stored_ms.get(body, now_ms) >= HOUR_MS


def is_deleted(process: Process, history: History, place: Place, body: bytes) -> bool:
    topic, queue_id, offset = place
    position, _ = history.log.get(body, (-1, 0))
    gone = offset < process.store.min_offset(topic, queue_id) or position < process.first
    return gone and is_old(process, history, body)


def _is_reported(process: Process, history: History, place: Place, body: bytes) -> bool:
    """Whether somebody was told that it is lost, by this process or an earlier one."""
    topic, queue_id, offset = place
    position, size = history.log[body]
    kept = [path.split(".")[0].split("-") for path in process.disk.list("damaged")]
    if any(int(at) < position + size and position < int(at) + int(count) for at, count in kept):
        return True
    says = f"consumequeue/{topic}/{queue_id}: the message at offset {offset} is lost"
    return any(says in text or f" {position}" in text for text in REPORTS.texts)


def _check_log(process: Process, in_queues: set[int], end: int) -> None:
    """Queues and log. Of messages that are being deleted the queues forget first."""
    store, now_ms = process.store, process.clock.now_ms()
    logged = {
        stored.commit_log_offset
        for stored in process.logged(end)
        if is_queued(stored.sys_flag)
        and (
            stored.queue_offset >= store.min_offset(stored.topic, stored.queue_id)
            or now_ms - stored.stored_ms < HOUR_MS
        )
    }
    must(in_queues == logged, 3, f"in queues only: {in_queues - logged}, in the log only: {logged - in_queues}")
    reader = process.settings.log(process.disk)
    behind = reader.read(store.end, reader.file_size - store.end % reader.file_size)
    must(not any(behind), 3, f"something stands behind the end of the log, {store.end}")


def _check_offsets(process: Process, history: History) -> None:
    for (group, topic, queue_id), offsets in history.committed.items():
        offset = process.broker.offsets.get(group, topic, queue_id)
        written = history.written.get((group, topic, queue_id), -1)
        where = f"{group} {topic} {queue_id} is at {offset}"
        must(offset == -1 or offset in offsets, 5, f"{where}, where nobody set it")
        must(offset >= written, 5, f"{where}, {written} was written")
        must(offset <= process.store.max_offset(topic, queue_id), 5, f"{where}, past the end")


# ---------------------------------------------------------------------------------------------- admin verify


def verified(disk: SimulatedDisk, settings: Settings) -> list[Finding]:
    findings: list[Finding] = []
    verify(disk, settings.store, findings.append)
    return findings


def check_verify(disk: SimulatedDisk, settings: Settings, *, closed: bool) -> None:
    """Of a disk on which nothing was damaged. One that was `closed` has nothing to note either."""
    wrong = [finding.text() for finding in verified(disk, settings) if closed or finding.is_damage]
    must(not wrong, 9, f"verify finds {wrong}")


def check_verify_finds(disk: SimulatedDisk, settings: Settings, what: set[Flip]) -> None:
    """Of a disk whose bits were flipped."""
    found = any(finding.is_damage for finding in verified(disk, settings))
    must(found, 9, f"verify finds no damage after flips of {sorted(what)}")
