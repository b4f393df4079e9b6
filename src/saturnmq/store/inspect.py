"""What stands in the files of a store, as lines for people and for grep (`saturnmq admin inspect`).

Each line has a kind and fields. Nothing is changed and nothing need be whole; a server may be at work on the files. One
record or a few megabytes of a file are in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from posixpath import basename, dirname
from struct import Struct
from typing import Any

import msgspec

from saturnmq.disk.port import Disk
from saturnmq.kernel import properties as names
from saturnmq.kernel.config import StoreConfig
from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.host import unpack
from saturnmq.kernel.message import StoredMessage
from saturnmq.kernel.topic import SCHEDULE_TOPIC
from saturnmq.store import checkpoint, foreign, indexfile, timerlog
from saturnmq.store.consumequeue import DIRECTORY as QUEUES
from saturnmq.store.consumequeue import ENTRY, ENTRY_BYTES, FILLER_SIZE
from saturnmq.store.scan import (
    Blank,
    Damage,
    End,
    LogFiles,
    data_behind,
    find_log,
    first_data,
    is_log_name,
    scan,
    size_of,
)
from saturnmq.store.verifyindex import find_shape
from saturnmq.wire.record import MIN_SIZE, decode, encode_stored, whole_crc
from saturnmq.wire.remoting import json

LOG = "commitlog"
INDEX = indexfile.DIRECTORY
DAMAGED = "damaged"
LOCK = "lock"

_CHUNK_ITEMS = 64 * 1024
#: store/timer/TimerLog.java
_TIMER_MAGICS = {timerlog.DEFAULT: "default", timerlog.ROLL: "roll", timerlog.DELETE: "delete"}
#: store/timer/Slot.java; its time counts units of timerPrecisionMs, a second
_TIMER_SLOT = Struct(">qqqii")
_TIMER_CHECK = Struct(">qqqqqqq")
_CHECKPOINT = Struct(">qqqqqq")
_PLAIN = re.compile(r'[^\s"=]+')


class Line(msgspec.Struct, frozen=True):
    """One thing found. Fields that end in `_ms` are times."""

    kind: str
    fields: dict[str, Any]

    def text(self) -> str:
        fields = (f"{name.removesuffix('_ms')}={_text(name, value)}" for name, value in self.fields.items())
        return " ".join([f"{self.kind:8}", *fields])

    def json(self) -> str:
        return msgspec.json.encode({"kind": self.kind, **self.fields}).decode()


def _text(name: str, value: Any) -> str:
    if name.endswith("_ms") and isinstance(value, int):
        return instant(value)
    if isinstance(value, dict | list):
        return "".join(map(_visible, msgspec.json.encode(value).decode()))
    text = str(value)
    if text.isprintable() and _PLAIN.fullmatch(text):
        return text
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(character: str) -> str:
    return "\\" + character if character in '"\\' else _visible(character)


def _visible(character: str) -> str:
    """Terminals obey some control characters, and hide others."""
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def instant(ms: int) -> str:
    """2026-11-22T16:26:03.192Z; the bare number when it is no time of this or a near century."""
    if not 0 < ms < 1 << 43:
        return str(ms)
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What of a file is asked for."""

    #: a log position, a queue offset or the number of an item; None: from the beginning
    start: int | None = None
    #: lines of records, entries or items
    count: int | None = None
    topic: str | None = None
    bodies: bool = False


class UnknownFile(Exception):
    """This path is nothing that a store has. The message says what was expected."""


def inspect(disk: Disk, path: str, wanted: Wanted, config: StoreConfig | None = None) -> Iterator[Line]:
    """The lines of a file or directory. `config` knows sizes that the files do not tell. Raises UnknownFile, OSError,
    which may come late."""
    if not disk.exists(path):
        raise UnknownFile(f"{path} does not exist")
    look = _recognise(disk, path)
    if look is None:
        raise UnknownFile(
            f"{path} is neither a data directory nor a log, a queue, an index, a checkpoint or a config file"
        )
    return _first(look(disk, path, wanted, config or StoreConfig()), wanted.count)


_Look = Callable[[Disk, str, Wanted, StoreConfig], Iterator[Line]]


def _first(lines: Iterable[Line], count: int | None) -> Iterator[Line]:
    """Until there were so many lines of what is counted."""
    left = count
    for line in lines:
        if left == 0 and line.kind in _COUNTED:
            return
        yield line
        if left is not None and line.kind in _COUNTED:
            left -= 1


_COUNTED = frozenset(("record", "entry", "item", "unit", "slot", "value", "queue"))


# ------------------------------------------------------------------------------------------------- what is it?


def _recognise(disk: Disk, path: str) -> _Look | None:
    name = basename(path)
    if is_directory(disk, path):
        return _recognise_directory(disk, path, name)
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name.endswith((".json", ".bak")) or name in ("transactionMetrics", "timermetrics"):
        return _json_file
    if basename(dirname(path)) == "timerlog":
        return _timer_log
    if len(name) == 17 and name.isdigit():
        return _index_file
    if basename(dirname(path)).isdigit() and is_log_name(name):
        return _queue_file
    return _by_content(disk, path)


def is_directory(disk: Disk, path: str) -> bool:
    try:
        disk.open(path).close()
    except OSError:
        return True
    return False


def _recognise_directory(disk: Disk, path: str, name: str) -> _Look | None:
    children = disk.list(path)
    if {LOG, QUEUES, checkpoint.PATH}.intersection(children):
        return _data_directory
    if name == "timerlog":
        return _timer_log_directory
    if any(len(child) == 17 and child.isdigit() for child in children):
        return _index_directory
    if any(map(is_log_name, children)):
        return _queue if name.isdigit() else _log_directory
    if any(child.isdigit() and len(child) < 10 for child in children):
        return _topic
    return _queues if name == QUEUES else None


def _by_content(disk: Disk, path: str) -> _Look | None:
    file = disk.open(path)
    try:
        head, size = file.pread(MIN_SIZE, 0), file.size()
    finally:
        file.close()
    if head[4:7] == b"\xda\xa3\x20" or head[4:8] == b"\xcb\xd4\x31\x94":
        return _log_file
    if head[:1] in (b"{", b"["):
        return _json_file
    if is_log_name(basename(path)):
        return _queue_file if size % ENTRY_BYTES == 0 and basename(dirname(path)) != LOG else _log_file
    return None


# ---------------------------------------------------------------------------------------------------- the log


def _log_directory(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    log, strays = find_log(disk, [path], None)
    yield from (Line("stray", {"path": stray}) for stray in strays)
    yield from _log(log, wanted)


def _log_file(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    """One file. Under its own name its neighbours tell the size that it should have; else the records their places."""
    if is_log_name(basename(path)):
        log, _ = find_log(disk, [dirname(path)], None)
        start = int(basename(path))
        log = LogFiles(disk, log.directory, {start: path} if start in log.paths else {}, log.file_size)
        if log.paths:
            return _log(log, wanted)
    file = disk.open(path)
    try:
        size, start = file.size(), int.from_bytes(file.pread(8, 28), "big")
    finally:
        file.close()
    if start % size:
        size = start
    return _log(LogFiles(disk, dirname(path), {start: path}, size), wanted)


def _log(log: LogFiles, wanted: Wanted) -> Iterator[Line]:
    for piece in scan(log, wanted.start):
        match piece:
            case StoredMessage():
                if wanted.topic in (None, piece.topic):
                    yield Line("record", {"position": piece.commit_log_offset, **_fields(piece, wanted.bodies)})
            case Blank():
                yield Line("blank", {"position": piece.position, "size": piece.end - piece.position})
            case Damage():
                yield _damage(log, piece, wanted.bodies)
            case End():
                yield Line("end", {"position": piece.position, "reason": piece.reason or "zeros"})
                behind = data_behind(log, piece.position)
                if behind is not None and not piece.reason:
                    yield Line("remains", {"position": behind, "reason": "no records, but not zeros either"})


def _fields(message: StoredMessage, bodies: bool) -> dict[str, Any]:
    properties = names.decode(message.properties)
    whole = whole_crc(encode_stored(message)) if b"__CRC32#" in message.properties else None
    fields: dict[str, Any] = {
        "size": message.size,
        "topic": message.topic,
        "queue": message.queue_id,
        "offset": message.queue_offset,
        "stored_ms": message.stored_ms,
        "born_ms": message.born_ms,
        "tags": properties.get(names.TAGS, ""),
        "keys": properties.get(names.KEYS, ""),
        "id": properties.get(names.UNIQUE_KEY, ""),
        "crc": {None: "ok", True: "ok-whole", False: "BAD-WHOLE"}[whole],
        "body_size": len(message.body),
        "flag": message.flag,
        "sys_flag": message.sys_flag,
        "reconsumed": message.reconsume_times,
        "prepared": message.prepared_transaction_offset,
        "born_host": str(unpack(message.born_host)),
        "store_host": str(unpack(message.store_host)),
    }
    if bodies:
        fields["body"] = message.body.decode("utf-8", "backslashreplace")
        fields["properties"] = properties
    return fields


def _damage(log: LogFiles, damage: Damage, bodies: bool) -> Line:
    """What can still be read of a record is shown beside it."""
    fields: dict[str, Any] = {
        "position": damage.position, "size": damage.end - damage.position, "reason": damage.reason,
    }  # fmt: skip
    try:
        message = decode(log.read(damage.position, damage.end - damage.position))
    except (ProtocolError, OSError):
        return Line("DAMAGE", fields)
    return Line("DAMAGE", fields | _fields(message, bodies) | {"crc": "BAD"})


# -------------------------------------------------------------------------------------------------- the queues


def _queues(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    """Every queue with its ends; of one topic, every entry."""
    for topic in disk.list(path) if wanted.topic is None else [wanted.topic]:
        look = _ends if wanted.topic is None else _queue
        for queue_id in _queue_ids(disk, f"{path}/{topic}"):
            yield from look(disk, f"{path}/{topic}/{queue_id}", wanted, config)


def _topic(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    for queue_id in _queue_ids(disk, path):
        yield from _queue(disk, f"{path}/{queue_id}", wanted, config)


def _queue_ids(disk: Disk, path: str) -> list[int]:
    return sorted(int(name) for name in disk.list(path) if name.isdigit())


def _ends(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    """A queue in one line. Where entries end is found by halving: a queue has none behind a gap."""
    files = [name for name in disk.list(path) if is_log_name(name)]
    fields: dict[str, Any] = {"topic": basename(dirname(path)), "queue": int(basename(path)), "files": len(files)}
    if files:
        first = _first_entry(disk, f"{path}/{files[0]}")
        fields["begin"] = int(files[0]) // ENTRY_BYTES + first
        fields["end"] = int(files[-1]) // ENTRY_BYTES + _count_entries(disk, f"{path}/{files[-1]}")
    yield Line("queue", fields)


def _first_entry(disk: Disk, path: str) -> int:
    """How many fillers the file begins with."""
    for index, (_, size, _) in enumerate(_entries(disk, path, 0)):
        if size != FILLER_SIZE:
            return index
    return 0


def _count_entries(disk: Disk, path: str) -> int:
    file = disk.open(path)
    try:
        low, high = 0, file.size() // ENTRY_BYTES
        while low < high:
            middle = (low + high) // 2
            if ENTRY.unpack(file.pread(ENTRY_BYTES, middle * ENTRY_BYTES))[1] > 0:
                low = middle + 1
            else:
                high = middle
    finally:
        file.close()
    return low


def _queue(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    for name in disk.list(path):
        if not is_log_name(name):
            yield Line("stray", {"path": f"{path}/{name}"})
        else:
            yield from _queue_file(disk, f"{path}/{name}", wanted, config)


def _queue_file(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    first = int(basename(path)) // ENTRY_BYTES if is_log_name(basename(path)) else 0
    queue, topic = basename(dirname(path)), basename(dirname(dirname(path)))
    where: dict[str, Any] = {"topic": topic, "queue": int(queue)} if queue.isdigit() else {}
    start = max(0, (wanted.start or 0) - first)
    offset = first + start
    fillers = 0
    for position, size, code in _entries(disk, path, start):
        if size == FILLER_SIZE and position == 0:
            fillers += 1
        else:
            if fillers:
                yield Line("fillers", where | {"offset": offset - fillers, "count": fillers})
                fillers = 0
            if (position, size, code) == (0, 0, 0):
                break
            yield Line("entry", where | {"offset": offset, **_entry_fields(topic, position, size, code)})
        offset += 1
    if fillers:
        yield Line("fillers", where | {"offset": offset - fillers, "count": fillers})
    yield Line("end", where | {"offset": offset})
    yield from _behind_entries(disk, path, (offset - first) * ENTRY_BYTES)


def _entry_fields(topic: str, position: int, size: int, code: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"position": position, "size": size}
    fields["due_ms" if topic == SCHEDULE_TOPIC else "tags_code"] = code
    if position < 0 or size < MIN_SIZE:
        fields["DAMAGE"] = "no record stands there"
    return fields


def _behind_entries(disk: Disk, path: str, offset: int) -> Iterator[Line]:
    file = disk.open(path)
    try:
        behind = first_data(file, offset)
    finally:
        file.close()
    if behind is not None:
        yield Line("DAMAGE", {"byte": behind, "reason": "something stands behind the last entry"})


def _entries(disk: Disk, path: str, start: int) -> Iterator[tuple[int, int, int]]:
    return _items(disk, path, ENTRY, start * ENTRY_BYTES)


def _items(disk: Disk, path: str, item: Struct, offset: int, end: int | None = None) -> Iterator[tuple[Any, ...]]:
    """What stands in the file from an offset on, a chunk at a time; half an item at its end is left out."""
    file = disk.open(path)
    try:
        size = file.size() if end is None else min(end, file.size())
        while offset + item.size <= size:
            count = min(_CHUNK_ITEMS, (size - offset) // item.size)
            yield from item.iter_unpack(file.pread(count * item.size, offset))
            offset += count * item.size
    finally:
        file.close()


# ---------------------------------------------------------------------------------------------------- the index


def _index_directory(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    for name in disk.list(path):
        header = _index_header(disk, f"{path}/{name}")
        yield Line("index", {"file": name} | header) if header else Line("stray", {"path": f"{path}/{name}"})


def _index_header(disk: Disk, path: str) -> dict[str, Any]:
    file = disk.open(path)
    try:
        size, head = file.size(), file.pread(indexfile.HEADER_BYTES, 0)
    finally:
        file.close()
    if len(head) < indexfile.HEADER_BYTES:
        return {}
    begin_ms, end_ms, begin, end, slots_used, next_item = indexfile.HEADER.unpack(head)
    return {
        "size": size, "begin_ms": begin_ms, "end_ms": end_ms, "begin_position": begin, "end_position": end,
        "slots_used": slots_used, "next_item": next_item,
    }  # fmt: skip


def _index_file(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    header = _index_header(disk, path)
    if not header:
        yield Line("DAMAGE", {"reason": "the file is shorter than its header"})
        return
    yield Line("index", header)
    if header["next_item"] <= 1:
        return
    shape = find_shape(disk, path, indexfile.Shape(config.max_hash_slot_num, config.max_index_num))
    if shape is None:
        yield Line("DAMAGE", {"reason": "the size is not that of maxHashSlotNum and maxIndexNum: see --set"})
        return
    number = max(1, wanted.start or 1)
    end = shape.item_at(header["next_item"])
    for hash_, position, seconds, previous in _items(disk, path, indexfile.ITEM, shape.item_at(number), end):
        yield Line(
            "item",
            {
                "number": number, "hash": hash_, "slot": hash_ % shape.slots, "position": position,
                "stored_ms": header["begin_ms"] + seconds * 1000, "previous": previous,
            },
        )  # fmt: skip
        number += 1


# --------------------------------------------------------------------------------------------- the small files


def _checkpoint(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    """Apache's fields, and whether the checks that we write beside them are right."""
    data = disk.read_file(path)
    if len(data) < checkpoint.PARSED_BYTES:
        yield Line("DAMAGE", {"reason": f"a checkpoint has 4096 bytes, not {len(data)}"})
        return
    log_ms, queues_ms, index_ms, flushed, confirmed, queues_position = _CHECKPOINT.unpack_from(data)
    said = checkpoint.parse(data[: checkpoint.PARSED_BYTES])
    yield Line(
        "checkpoint",
        {
            "log_ms": log_ms, "queues_ms": queues_ms, "index_ms": index_ms, "master_flushed": flushed,
            "confirmed": confirmed, "queues_position": queues_position,
            "queued": said.queued, "times_check": "ok" if said.is_ours else "none",
            "confirmed_check": "ok" if said.is_confirmed else "none",
        },
    )  # fmt: skip


def _abort(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    yield Line("abort", {"by": disk.read_file(path).decode("utf-8", "replace")})


def _json_file(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    """A line for each entry of each table."""
    data = disk.read_file(path)
    try:
        content = json.parse(data, most_tokens=len(data) + 1)
    except ProtocolError as error:
        yield Line("DAMAGE", {"reason": str(error)})
        return
    for key, value in content.items() if isinstance(content, dict) else [("", content)]:
        if isinstance(value, Mapping) and key != "dataVersion":
            for name, entry in value.items():
                yield Line("value", {"table": key, "key": str(name), "value": entry})
        else:
            yield Line("value", {"key": key, "value": value})


def _timer_log_directory(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    for name in disk.list(path):
        yield from _timer_log(disk, f"{path}/{name}", wanted, config)


def _timer_log(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    first = int(basename(path)) if is_log_name(basename(path)) else 0
    start = max(0, (wanted.start or 0) - first) // timerlog.UNIT_BYTES
    at = first + start * timerlog.UNIT_BYTES
    for unit in _items(disk, path, timerlog.UNIT, start * timerlog.UNIT_BYTES):
        size, previous, magic, written_ms, delay_ms, position, record_size, topic_hash, _ = unit
        if size != timerlog.UNIT_BYTES:
            break
        yield Line(
            "unit",
            {
                "position": at, "previous": previous, "magic": _timer_magic(magic),
                "written_ms": written_ms, "due_ms": written_ms + delay_ms, "record": position,
                "record_size": record_size, "topic_hash": topic_hash,
            },
        )  # fmt: skip
        at += timerlog.UNIT_BYTES
    yield Line("end", {"position": at})


def _timer_magic(magic: int) -> str:
    return "+".join(name for bit, name in _TIMER_MAGICS.items() if magic & bit)


def _timer_wheel(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    """Slots in use. Most of the file is a hole."""
    file = disk.open(path)
    try:
        offset = (wanted.start or 0) * _TIMER_SLOT.size
        while (found := first_data(file, offset)) is not None:
            index = found // _TIMER_SLOT.size
            units, first, last, count, _ = _TIMER_SLOT.unpack(
                file.pread(_TIMER_SLOT.size, index * _TIMER_SLOT.size).ljust(_TIMER_SLOT.size, b"\0")
            )
            yield Line(
                "slot",
                {
                    "number": index,
                    "due_ms": units * config.timer_precision_ms,
                    "first": first,
                    "last": last,
                    "count": count,
                },
            )
            offset = (index + 1) * _TIMER_SLOT.size
    finally:
        file.close()


def _timer_check(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    data = disk.read_file(path)
    if len(data) < _TIMER_CHECK.size:
        yield Line("DAMAGE", {"reason": f"a timer checkpoint has 56 bytes at least, not {len(data)}"})
        return
    read_ms, log_position, queue_offset, master_offset, version, changed_ms, counter = _TIMER_CHECK.unpack_from(data)
    yield Line(
        "timercheck",
        {
            "read_ms": read_ms, "log_flushed": log_position, "queue_offset": queue_offset,
            "master_queue_offset": master_offset, "state_version": version, "changed_ms": changed_ms,
            "counter": counter,
        },
    )  # fmt: skip


def _lock(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    holder = disk.lock_holder(path)
    yield Line("lock", {"held": holder is not None} | ({"pid": holder} if holder is not None else {}))


_BY_NAME: Mapping[str, _Look] = {
    checkpoint.PATH: _checkpoint,
    checkpoint.ABORT: _abort,
    LOCK: _lock,
    "timerwheel": _timer_wheel,
    "timercheck": _timer_check,
}


# ------------------------------------------------------------------------------------------- a data directory


def _data_directory(disk: Disk, path: str, wanted: Wanted, config: StoreConfig) -> Iterator[Line]:
    """Everything in short: what a start would find."""
    here = f"{path}/" if path else ""
    for found in foreign.find(disk, here):
        yield Line("foreign", {"path": found.path, "what": found.what, "remedy": found.remedy})
    for name in (LOCK, checkpoint.PATH, checkpoint.ABORT):
        if disk.exists(here + name):
            yield from _BY_NAME[name](disk, here + name, wanted, config)
    log, strays = find_log(disk, [here + LOG], None)
    yield from (Line("stray", {"path": stray}) for stray in strays)
    if log.paths:
        yield Line(
            "log",
            {
                "files": len(log.paths), "file_size": log.file_size, "begin": log.first,
                "files_missing": len(log.runs()) - 1,
            },
        )  # fmt: skip
        yield from _log_ends(log)
    yield from _queues(disk, here + QUEUES, wanted, config)
    yield from _index_directory(disk, here + INDEX, wanted, config)
    for directory in ("config", DAMAGED):
        for name in disk.list(here + directory):
            if not is_directory(disk, f"{here}{directory}/{name}"):
                size = size_of(disk, f"{here}{directory}/{name}")
                yield Line("file", {"path": f"{directory}/{name}", "size": size})


def _log_ends(log: LogFiles) -> Iterator[Line]:
    """The first record, and of the last file that is not empty the last one and the damage."""
    yield from islice(_log(log, Wanted()), 1)
    starts = list(log.paths)
    used = [start for start in starts if _holds_data(log.disk, log.paths[start])]
    record = None
    for line in _log(log, Wanted(start=used[-1] if used else starts[0])):
        if line.kind == "record":
            record = line
            continue
        if record is not None:
            yield record
        yield line
        record = None


def _holds_data(disk: Disk, path: str) -> bool:
    file = disk.open(path)
    try:
        return any(file.pread(MIN_SIZE, 0))
    finally:
        file.close()
