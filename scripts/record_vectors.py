"""Records what Apache's processes and official clients say to each other, as vectors for our decoders.

    APACHE_HOME=/tmp/apache .venv/bin/python scripts/record_vectors.py PATH/TO/apache.sh

Starts Apache's NameServer, Broker and Proxy on 127.0.0.1 and this recorder on 127.0.0.2, which is
the address that the Broker registers and the clients dial. Writes one file per direction of each connection, cut at a
frame after MOST_BYTES, and a README to each of tests/vectors/remoting and tests/vectors/http2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

VECTORS = Path(__file__).parent.parent / "tests" / "vectors"
SERVER, RECORDER = "127.0.0.1", "127.0.0.2"
NAMESERVER, BROKER, GRPC, PROXY = 19776, 19711, 19781, 19780
#: the recorder's; the broker's port must be its own, and it is told to listen on SERVER alone
RECORDED_NAMESERVER, RECORDED_GRPC = 19777, 19782
TOPIC = "TopicTest"  # of Apache's quick start
MOST_BYTES = 10_000
#: a stream's share: connections that say the same as others before are not kept
MOST_CONNECTIONS = 3

PYTHON_CLIENT = f"""
import contextlib, time
from rocketmq import ClientConfiguration, Credentials, FilterExpression, Message, Producer, SimpleConsumer
configuration = ClientConfiguration("{RECORDER}:{RECORDED_GRPC}", Credentials(), request_timeout=15)
producer = Producer(configuration, {{"{TOPIC}"}})
producer.startup()
for number in range(3):
    message = Message()
    message.topic, message.body, message.tag, message.keys = "{TOPIC}", b"hello %d" % number, "TagA", f"key{{number}}"
    message.add_property("colour", "grün")
    producer.send(message)
consumer = SimpleConsumer(configuration, "vectors", {{"{TOPIC}": FilterExpression()}}, 15)
consumer.startup()
received = []
for attempt in range(30):  # a proxy that just started may not have taken the client's settings yet, and refuses
    with contextlib.suppress(Exception):
        received = consumer.receive(32, 15)
    if received:
        break
    time.sleep(1)
for message in received:
    consumer.ack(message)
consumer.shutdown()
producer.shutdown()
"""


class Recorder:
    """A TCP relay for one port. `scenario` names what is recorded; nothing is while it is empty."""

    def __init__(self, port: int, server_port: int, folder: str, name: str, cut: Callable[[bytes], int]) -> None:
        self.port, self.server_port, self.folder, self.name, self.cut = port, server_port, folder, name, cut
        self.scenario = ""
        self.streams: list[tuple[str, str, bytearray]] = []

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._relay, RECORDER, self.port)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(SERVER, self.server_port)
        requests, replies = bytearray(), bytearray()
        if self.scenario:
            self.streams += [(self.scenario, "requests", requests), (self.scenario, "replies", replies)]
        await asyncio.gather(_copy(reader, far_writer, requests), _copy(far_reader, writer, replies))

    def write(self) -> None:
        """The longest connections of each scenario."""
        for scenario in dict.fromkeys(name for name, _, _ in self.streams):
            pairs = [data for name, _, data in self.streams if name == scenario]
            connections = sorted(zip(pairs[::2], pairs[1::2], strict=True), key=lambda pair: -len(pair[0]))
            kept = [(requests, replies) for requests, replies in connections if requests][:MOST_CONNECTIONS]
            for number, pair in enumerate(kept, 1):
                for direction, data in zip(("requests", "replies"), pair, strict=True):
                    name = f"{self.name}-{scenario}-{number}-{direction}.bin"
                    (VECTORS / self.folder / name).write_bytes(data[: self.cut(bytes(data))])


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            if len(kept) < 10 * MOST_BYTES:
                kept += data
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(ConnectionError):
        writer.close()


def cut_remoting(data: bytes) -> int:
    """Where the last frame ends that begins in the first MOST_BYTES."""
    at = 0
    while at < min(len(data) - 4, MOST_BYTES):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        at = end
    return at


def cut_http2(data: bytes) -> int:
    at = 24 if data.startswith(b"PRI * HTTP/2.0") else 0
    while at < min(len(data) - 9, MOST_BYTES):
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        if end > len(data):
            break
        at = end
    return at


class Apache:
    """Apache's processes and tools, through apache.sh."""

    def __init__(self, script: str, home: str) -> None:
        self.script = script
        self.environment = {
            **os.environ,
            "APACHE_HOME": home,
            "BROKER_PORT": str(BROKER),
            "GRPC_PORT": str(GRPC),
            "PROXY_PORT": str(PROXY),
            "HEAP": "700m",
            "BROKER_CONF": f"brokerIP1={RECORDER};bindAddress={SERVER}",
            "PROXY_JSON": '"useEndpointPortFromRequest":true,',
        }

    @contextlib.asynccontextmanager
    async def running(self, kind: str, port: int, nameserver: str) -> AsyncIterator[None]:
        self.environment["NAMESRV"] = nameserver
        process = await self._start("start", kind)
        try:
            for _ in range(120):
                if process.returncode is not None:
                    sys.exit(f"Apache's {kind} ended")
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(SERVER, port)
                    writer.close()
                    break
                await asyncio.sleep(0.5)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def run(self, *arguments: str, seconds: float = 60) -> None:
        """A tool or client until it ends, at most so long: some consume for ever."""
        print(*arguments, flush=True)
        process = await self._start(*arguments)
        try:
            await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGTERM)  # a client says goodbye
            await process.wait()

    async def _start(self, *arguments: str) -> asyncio.subprocess.Process:
        null = asyncio.subprocess.DEVNULL
        return await asyncio.create_subprocess_exec(
            "bash", self.script, *arguments, env=self.environment, stdout=null, stderr=null, start_new_session=True
        )


async def record(script: str, home: str) -> None:
    apache = Apache(script, home)
    nameserver = Recorder(RECORDED_NAMESERVER, NAMESERVER, "remoting", "nameserver", cut_remoting)
    broker = Recorder(BROKER, BROKER, "remoting", "broker", cut_remoting)
    grpc = Recorder(RECORDED_GRPC, GRPC, "http2", "proxy", cut_http2)
    recorders = (nameserver, broker, grpc)
    for recorder in recorders:
        await recorder.listen()

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(apache.running("namesrv", NAMESERVER, f"{SERVER}:{NAMESERVER}"))
        nameserver.scenario = "registration"
        await stack.enter_async_context(apache.running("broker", BROKER, f"{RECORDER}:{RECORDED_NAMESERVER}"))
        nameserver.scenario = ""
        await play(apache, recorders)
    for recorder in recorders:
        recorder.write()
    for folder in ("remoting", "http2"):
        write_readme(VECTORS / folder)


async def play(apache: Apache, recorders: Sequence[Recorder]) -> None:
    """The scenarios, each under its name."""

    def scene(name: str) -> None:
        for recorder in recorders:
            recorder.scenario = name

    name_server, cluster = ("-n", f"{RECORDER}:{RECORDED_NAMESERVER}"), ("-c", "DefaultCluster")
    await apache.run("admin", "updateTopic", *name_server, *cluster, "-t", TOPIC, "-r", "4", "-w", "4")
    await apache.run("admin", "updateSubGroup", *name_server, *cluster, "-g", "vectors")
    example = "org.apache.rocketmq.example.quickstart."
    for serialisation in ("JSON", "ROCKETMQ"):
        java = (
            "run",
            f"-Drocketmq.namesrv.addr={RECORDER}:{RECORDED_NAMESERVER}",
            f"-Drocketmq.serialize.type={serialisation}",
        )
        scene(f"send-{serialisation.lower()}")
        await apache.run(*java, example + "Producer")
        scene(f"consume-{serialisation.lower()}")
        await apache.run(*java, example + "Consumer", seconds=12)
    for command in (
        ("topicList",),
        ("clusterList",),
        ("topicRoute", "-t", TOPIC),
        ("topicStatus", "-t", TOPIC),
        ("consumerProgress", "-g", "please_rename_unique_group_name_4"),
    ):
        scene(command[0])
        await apache.run("admin", *command, *name_server)
    scene("")
    async with apache.running("proxy", GRPC, f"{SERVER}:{NAMESERVER}"):
        scene("python")
        with tempfile.TemporaryDirectory() as client_home:
            environment = {**os.environ, "HOME": client_home}
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", PYTHON_CLIENT, env=environment)
            if await process.wait():
                sys.exit("the Python client failed")


def write_readme(folder: Path) -> None:
    lines = [f"| {file.name} | {file.stat().st_size} |" for file in sorted(folder.glob("*.bin"))]
    text = f"""# Vectors: {folder.name}

What Apache RocketMQ 5.5.0 and clients said to each other, one file per direction of a connection, cut off at a frame
when it was long. Recorded by `scripts/record_vectors.py`, which tells the scenarios: `send-*` and `consume-*` are
Apache's quick start with either encoding of Remoting headers, `registration` is its broker at its NameServer, `python`
is rocketmq-python-client 5.1.2 in plaintext; the others are commands of mqadmin.

| file | bytes |
| --- | --- |
"""
    (folder / "README.md").write_text(text + "\n".join(lines) + "\n")


def main() -> None:
    original = Path(os.environ.get("APACHE_HOME", "/tmp/apache"))
    with tempfile.TemporaryDirectory(prefix="saturnmq-vectors-") as home:
        os.symlink(original / "lib", Path(home) / "lib")
        for folder in ("remoting", "http2"):
            shutil.rmtree(VECTORS / folder, ignore_errors=True)
            (VECTORS / folder).mkdir(parents=True)
        asyncio.run(record(sys.argv[1], home))


if __name__ == "__main__":
    main()
