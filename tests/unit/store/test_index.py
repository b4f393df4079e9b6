"""Messages by key: through the store, as its users do."""

from __future__ import annotations

from store_stage import Stage, message

from saturnmq.store.keys import KeyKind
from saturnmq.wire.record import decode

END_MS = (1 << 63) - 1


def properties(unique: str = "", keys: str = "", tag: str = "") -> bytes:
    pairs = {"UNIQ_KEY": unique, "KEYS": keys, "TAGS": tag, "WAIT": "true"}
    return "".join(f"{key}\x01{value}\x02" for key, value in pairs.items() if value).encode()


def send(stage: Stage, body: bytes, topic: str = "Topic", **keys: str) -> None:
    stage.store.append([message(body, topic, properties=properties(**keys))])
    stage.clock.run_soon()


def query(
    stage: Stage,
    key: str,
    count: int = 32,
    begin_ms: int = 0,
    end_ms: int = END_MS,
    topic: str = "Topic",
    kind: KeyKind = KeyKind.KEY,
) -> list[bytes]:
    return [decode(r).body for r in stage.wait(stage.store.query(topic, key, count, begin_ms, end_ms, kind))]


def test_by_key_word_unique_key_and_tag() -> None:
    stage = Stage().open()
    for restart in range(2):
        send(stage, b"1", unique="U1", keys="a b", tag="t")
        send(stage, b"2", unique="U2", keys="b  c")
        send(stage, b"3", topic="Other", keys="b")
        for _ in range(2):
            assert query(stage, "U1") == [b"1"] * (restart + 1)
            assert query(stage, "b") == [b"2", b"1"] * (restart + 1)
            assert query(stage, "b", 1) == [b"2"]
            assert query(stage, "t") == []
            assert query(stage, "t", kind=KeyKind.TAG) == [b"1"] * (restart + 1)
            stage.clock.advance(3000)
        stage.close()
        stage = stage.again()


def test_crash() -> None:
    stage = Stage().open()
    n = 0
    for turn in range(30):
        for _ in range(7):
            send(stage, b"%d" % n, unique=f"U{n}", keys=f"k{n % 5} k{n % 7}", tag="t")
            n += 1
        stage.clock.advance(11000)
        if turn % 3 == 0:
            disk = stage.disk.crashed()
            stage = Stage(disk, clock=stage.clock).open()
            stage.clock.run_soon()
        for i in range(n):
            assert query(stage, f"U{i}") == [b"%d" % i], (turn, i)
        assert query(stage, "k3", 1000) == [b"%d" % i for i in reversed(range(n)) if i % 5 == 3 or i % 7 == 3][:64]
    print(stage.disk.list("index"))
