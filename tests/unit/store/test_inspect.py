"""What `inspect` prints. The texts are in `inspect/`; `make rewrite` records them anew."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from store_stage import Stage, message

from saturnmq.disk.readonly import ReadOnlyDisk
from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.store.inspect import Line, UnknownFile, Wanted, inspect, instant
from saturnmq.store.scan import Blank, Damage, End, find_log, scan
from saturnmq.wire.record import MAGIC_BLANK

GOLDEN = Path(__file__).parent / "inspect"
APACHE = Path(__file__).parents[2] / "vectors" / "store" / "apache-5.5.0-whole"
INDEX: dict[str, Any] = {"max_hash_slot_num": 20, "max_index_num": 30}
LOG = "commitlog/00000000000000000000"
QUEUE = "consumequeue/Topic/0/00000000000000000000"


def ours() -> SimulatedDisk:
    stage = Stage(**INDEX).open()
    for number in range(16):
        stage.send(b'\x1b[31m%d "\xc3\xa4\xff\n' % number * (number * 3 % 20), queue_id=number % 2)
        stage.clock.advance(1000)
    stage.store.append([message(b"", properties="KEYS\x01a b\x02TAGS\x01größe\x1b[31m".encode(), flag=7)])
    stage.close()
    stage.disk.replace_file(
        "config/consumerOffset.json", b'{"offsetTable":{"Topic@g":{0:5}},"dataVersion":{"counter":1}}'
    )
    return stage.disk


def damaged() -> SimulatedDisk:
    disk = ours()
    content = disk.read_file(LOG)
    blank = content.rfind(MAGIC_BLANK.to_bytes(4, "big")) - 4
    for path, offset, data in (
        (LOG, 190, b"\xff"),
        (LOG, 300, bytes(900)),
        (LOG, blank, b"\xff"),
        ("commitlog/00000000000000002048", 2000, b"remains"),
        (QUEUE, 20, b"\xff"),
        (QUEUE, 150, b"\xff"),
        ("checkpoint", 0, b"\xff"),
    ):
        file = disk.open(path)
        file.pwrite(data, offset)
        file.close()
    disk.replace_file("commitlog/notes.txt", b"")
    disk.replace_file("config/topics.json", b"{]")
    disk.replace_file("index/short", b"x")
    return disk


def texts(disk: SimulatedDisk | ReadOnlyDisk, path: str, **wanted: Any) -> str:
    return "".join(f"{line.text().rstrip()}\n" for line in inspect(disk, path, Wanted(**wanted)))


@pytest.mark.parametrize(
    ("name", "path", "wanted"),
    [
        ("log", "commitlog", {}),
        ("log-bodies", LOG, {"bodies": True, "count": 3}),
        ("log-from", "commitlog", {"start": 2048, "count": 2}),
        ("queue", "consumequeue/Topic/0", {}),
        ("queue-from", QUEUE, {"start": 2, "count": 2}),
        ("topic", "consumequeue/Topic", {}),
        ("queues", "consumequeue", {}),
        ("index", "index", {}),
        ("checkpoint", "checkpoint", {}),
        ("offsets", "config/consumerOffset.json", {}),
        ("directory", "", {}),
    ],
)  # fmt: skip
def test_ours(name: str, path: str, wanted: dict[str, Any]) -> None:
    disk = ours()
    check(name, texts(disk, path, **wanted))
    assert disk.open_files == 0


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("damaged-log", "commitlog"),
        ("damaged-queue", QUEUE),
        ("damaged-directory", ""),
        ("damaged-config", "config/topics.json"),
    ],
)
def test_damaged(name: str, path: str) -> None:
    check(name, texts(damaged(), path))


@pytest.mark.parametrize(
    "path",
    [
        "", "commitlog", "consumequeue/SCHEDULE_TOPIC_XXXX", "consumequeue/TopicA/0", "index",
        "index/20261122162603338", "checkpoint", "config/topics.json", "config/timercheck", "config/timermetrics",
        "config/delayOffset.json.bak", "timerlog",
    ],
)  # fmt: skip
def test_apaches(path: str) -> None:
    name = f"apache-{path.replace('/', '-') or 'directory'}"
    check(name, texts(ReadOnlyDisk(str(APACHE)), path, count=6))


def check(name: str, text: str) -> None:
    text = re.sub(r"file=2023\d{13}", "file=<local time>", text)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("SATURNMQ_REWRITE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), "read the difference, and `make rewrite` if it is meant"


def test_lines_are_json_too() -> None:
    lines = [json.loads(line.json()) for line in inspect(ours(), LOG, Wanted(count=1, bodies=True))]
    assert lines[0]["kind"] == "record"
    assert (lines[0]["position"], lines[0]["topic"], lines[0]["properties"]["KEYS"]) == (0, "Topic", "k")


def test_a_topic_alone() -> None:
    stage = Stage().open()
    stage.send(b"1")
    stage.send(b"2", topic="Other")
    stage.send(b"3", topic="Other", queue_id=3)
    stage.close()
    records = [line.fields for line in inspect(stage.disk, "commitlog", Wanted(topic="Other"))]
    assert [fields.get("queue") for fields in records] == [0, 3, None]
    entries = [line.fields["queue"] for line in inspect(stage.disk, "consumequeue", Wanted(topic="Other"))]
    assert entries == [0, 0, 3, 3]  # an entry and the end of each


def test_a_log_file_under_another_name(tmp_path: Path) -> None:
    """A copy that somebody sent: its records tell where it stood."""
    disk = ours()
    (tmp_path / "copy.bin").write_bytes(disk.read_file("commitlog/00000000000000002048"))
    lines = list(inspect(ReadOnlyDisk("/"), str(tmp_path / "copy.bin"), Wanted()))
    assert lines[0].fields["position"] == 2048
    assert lines[-1].kind == "end"


def test_a_log_file_that_was_cut(tmp_path: Path) -> None:
    content = ours().read_file("commitlog/00000000000000002048")
    (tmp_path / "00000000000000002048").write_bytes(content[:300])
    lines = list(inspect(ReadOnlyDisk(str(tmp_path)), "00000000000000002048", Wanted()))
    assert [line.kind for line in lines] == ["record", "end"]
    assert "the file ends there" in lines[-1].fields["reason"]


def test_what_is_no_file_of_a_store(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    disk = ReadOnlyDisk(str(tmp_path))
    for name in ("letter.txt", "empty", "missing"):
        with pytest.raises(UnknownFile, match=name):
            inspect(disk, name, Wanted())


def test_other_sizes_of_an_index_need_a_word() -> None:
    disk = ours()
    path = f"index/{disk.list('index')[0]}"
    assert [line.kind for line in inspect(disk, path, Wanted(count=1))] == ["index", "item"]
    file = disk.open(path)
    file.truncate(file.size() + 3)
    file.pwrite(b"\xff" * 8, 16)
    file.close()
    lines = [line.text() for line in inspect(disk, path, Wanted())]
    assert "maxHashSlotNum" in lines[-1]


def test_values_that_terminals_would_obey_are_escaped() -> None:
    assert Line("x", {"a": "\x1b[31m", "b": 'say "x" = y', "c": "größe", "d": "", "e": "\u202e"}).text() == (
        r'x        a="\x1b[31m" b="say \"x\" = y" c=größe d="" e="\u202e"'
    )


@pytest.mark.parametrize(
    ("ms", "text"), [(1, "1970-01-01T00:00:00.001Z"), (0, "0"), (-5, "-5"), (1 << 62, str(1 << 62))]
)
def test_instants(ms: int, text: str) -> None:
    assert instant(ms) == text


# ------------------------------------------------------------------------------------------------------ scanning


def test_a_scan_has_no_gaps() -> None:
    disk = damaged()
    log, strays = find_log(disk, ["commitlog"], None)
    assert strays == ["commitlog/notes.txt"]
    position, kinds = 0, set()
    for piece in scan(log):
        kinds.add(type(piece))
        if isinstance(piece, Blank | Damage | End):
            assert piece.position == position
            position = piece.position if isinstance(piece, End) else piece.end
        else:
            assert piece.commit_log_offset == position
            position += piece.size
    assert kinds >= {Damage, End}


def test_a_scan_passes_over_missing_files() -> None:
    disk = ours()
    disk.unlink("commitlog/00000000000000000000")
    log, _ = find_log(disk, ["commitlog"], 2048)
    assert log.first == 2048
    disk = ours()
    stage = Stage(disk, **INDEX).open()
    for _ in range(20):
        stage.send(b"x" * 200)
    stage.close()
    disk.unlink("commitlog/00000000000000002048")
    log, _ = find_log(disk, ["commitlog"], None)
    missing = [piece for piece in scan(log) if isinstance(piece, Damage)]
    assert missing == [Damage(2048, 4096, "the file is missing")]


@pytest.mark.parametrize("names", [[], ["00000000000000000000"], ["00000000000000000100"]])
def test_empty_logs(names: list[str]) -> None:
    disk = SimulatedDisk()
    disk.mkdir("commitlog")
    for name in names:
        disk.create(f"commitlog/{name}").close()
    log, _ = find_log(disk, ["commitlog"], None)
    (end,) = scan(log)
    assert isinstance(end, End)
