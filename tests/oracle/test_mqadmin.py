"""Every command of mqadmin in the same situation of Apache's NameServer and Broker and of ours, side by side.

The brokers are known under another address than the one that they listen on: message ids and routes lead there.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import remoting_fixtures
from harness.apache import Apache
from harness.mqadmin import JVM, Mqadmin, Said
from harness.mqadmin_table import SCRIPT, Situation, Step, commands
from harness.pipeline import packed
from harness.processes import Processes
from harness.remoting import RemotingClient, RemotingMessage, RemotingProcess, wait_shared
from harness.servers import free_port
from harness.shared_broker import PATIENT, SharedBroker

SEND_MESSAGE_V2 = 310
GET_CONSUMER_LIST_BY_GROUP = 38
GET_MAX_OFFSET = 30
GET_CONSUME_STATS = 208
ADVERTISED = "127.0.0.2"
TOPIC, GROUP, QUEUES = "orders", "readers", 4
MESSAGES = 12
BORN_MS = 1_700_000_000_000
#: of what clients and servers do by themselves
SOON_S = 30

TOPICS = [
    {"topicName": "fifo-write", "readQueueNums": 1, "writeQueueNums": 1, "perm": 6},
    {"topicName": "listed", "readQueueNums": 2, "writeQueueNums": 3, "perm": 4, "order": True},
]
GROUPS = [{"groupName": "first", "retryMaxTimes": 5}, {"groupName": "second", "consumeBroadcastEnable": False}]


def message_id(number: int) -> str:
    return f"AC11000100002A139A65{number:012X}"


class Cluster:
    """A NameServer and a Broker, and mqadmin at them. Owner of the clients that a situation needs."""

    def __init__(self, home: Path, namesrv: str, broker: SharedBroker, mqadmin: Mqadmin, java: RemotingProcess) -> None:
        self.home, self.namesrv, self.broker, self.mqadmin = home, namesrv, broker, mqadmin
        (home / "topics.json").write_text(json.dumps(TOPICS))
        (home / "illegal-topics.json").write_text(json.dumps([{"topicName": "no/slash"}]))
        (home / "groups.json").write_text(json.dumps(GROUPS))
        self.names = {"{broker}": broker.address, "{namesrv}": namesrv, "{home}": str(home)}
        self._client = RemotingClient(java, namesrv)

    # ------------------------------------------------------------------------------------------------- commands

    def run(self, step: Step) -> Said:
        words = [self._named(word) for word in _words(step.arguments)]
        if step.endless_s:
            said = self._run_for(step.endless_s, step.command, *words)
        else:
            said = self.mqadmin.run(self.namesrv, step.command, *words)
        if words[-2:] == ["-m", "true"]:
            self.names["{traced}"] = said.table()[0][-1]
        return Said(said.out + self._written(), said.err)

    def _named(self, text: str) -> str:
        for name, value in self.names.items():
            text = text.replace(name, value)
        return text

    def _run_for(self, seconds: float, command: str, *words: str) -> Said:
        program = "org.apache.rocketmq.tools.command.MQAdminStartup"
        classes = f"{self.mqadmin.home.parent}/lib/*"
        arguments = [*JVM, f"-Duser.home={self.home}", "-cp", classes, program, command, "-n", self.namesrv, *words]
        with (self.home / "out").open("w+") as out, (self.home / "err").open("w+") as err:
            process = subprocess.Popen(arguments, cwd=self.home, stdout=out, stderr=err)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
            process.wait()
        log = self.home / "logs" / "rocketmqlogs" / "broker_default.log"
        told = re.findall(r"\[(?:MONITOR|NOTIFY)\].*", log.read_text()) if log.exists() else []
        return Said("\n".join([(self.home / "out").read_text(), *told]), (self.home / "err").read_text())

    def _written(self) -> str:
        """What the command left in files."""
        folders = [self.home / "export", *self.mqadmin.home.glob("[0-9]*")]
        text = ""
        for folder in folders:
            for path in sorted(folder.rglob("*")) if folder.exists() else ():
                text += f"\n{path.name}\n{path.read_text()}"
            shutil.rmtree(folder, ignore_errors=True)
        return text

    # ----------------------------------------------------------------------------------------------- situations

    def come_into(self, situation: Situation) -> None:
        {
            Situation.MESSAGES: self._send,
            Situation.CONSUMERS: self._consume,
            Situation.CONSUMERS_LEFT: self._leave,
        }[situation]()

    def _send(self) -> None:
        for number in range(MESSAGES):
            properties = {
                "UNIQ_KEY": message_id(number),
                "KEYS": f"key-{number} all",
                "TAGS": ("red", "green")[number % 2],
                "colour": "grün",
            }
            fields = {"a": "raw", "b": TOPIC, "c": "TBW102", "d": "4", "e": str(number % QUEUES), "f": "0"}
            fields |= {"g": str(BORN_MS), "h": "0", "i": packed(properties), "j": "0", "k": "false", "m": "false"}
            _, answer = self.broker.connection.ask(SEND_MESSAGE_V2, b"body %d" % number, **fields)
        fields |= {"b": "fifo-write", "e": "0"}
        _, single = self.broker.connection.ask(SEND_MESSAGE_V2, b"single", **fields)
        self.names |= {"{single_id}": single["msgId"], "{id}": message_id(MESSAGES - 1), "{offset_id}": answer["msgId"]}

    def _consume(self) -> None:
        self._client.close(self._client.push(GROUP, {"units": "*"}))  # makes the retry topic
        producer = self._client.producer()
        producer.send([RemotingMessage(TOPIC, b"from java", "red", queue_id=0)])
        consumers = [self._client.push(GROUP, {TOPIC: "*"}) for _ in range(2)]
        wait_shared(TOPIC, QUEUES, *consumers)
        ends = [self._end(queue) for queue in range(QUEUES)]
        self._wait(lambda: [self.broker.committed(GROUP, TOPIC, queue) for queue in range(QUEUES)] == ends)
        self._wait(lambda: "%RETRY%" in self.broker.connection.call(GET_CONSUME_STATS, consumerGroup=GROUP).decode())
        body = self.broker.connection.call(GET_CONSUMER_LIST_BY_GROUP, consumerGroup=GROUP)
        self.names["{client}"] = min(json.loads(body)["consumerIdList"])

    def _end(self, queue: int) -> int:
        _, fields = self.broker.connection.ask(GET_MAX_OFFSET, topic=TOPIC, queueId=str(queue))
        return int(fields["offset"])

    def _leave(self) -> None:
        for opened in list(self._client.opened):
            self._client.close(opened)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SOON_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    # ------------------------------------------------------------------------------------------- what must vary

    def plain(self, said: Said, step: Step) -> list[str]:
        """The lines, without what must vary between two clusters and two runs."""
        lines = [line for line in (said.out + "\n" + said.err).splitlines() if not line.startswith(NOISE)]
        text = "\n".join(" ".join(line.split()) for line in lines if line.strip())
        for name in ("{client}", "{home}", "{broker}", "{namesrv}"):
            if name in self.names:
                text = text.replace(self.names[name], name)
        for expression in step.varies:
            text = re.sub(expression, lambda found: f"{found[1] if found.lastindex else ''}~", text)
        for pattern, word in VARIES:
            text = pattern.sub(word, text)
        lines = [line for line in text.splitlines() if not (step.noise and re.fullmatch(step.noise, line))]
        return sorted(lines) if step.unordered else lines


#: how our servers refuse a request that they do not serve; some commands only say that there was an error
NOT_SERVED = re.compile(r"CODE: ?3$|^\[?broker-a\]? error|Mapping info should not be null")
#: stack traces, and where to read on
NOISE = ("\tat ", "\t... ", "For more information", "See https://")
#: what varies everywhere. Refusals have the same code; what they say is ours
VARIES = [
    (re.compile(expression), word)
    for expression, word in (
        (r"(CODE: ?\d+) +DESC:.*", r"\1"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d([,:.]\d{3})?", "<time>"),
        (r"\b1[78]\d{11}\b", "<ms>"),
        (r"\b7F000002[0-9A-F]{24}\b", "<offset id>"),
        (r"\b(?!AC11|FFFF)[0-9A-F]{32}([0-9A-F]{24})?\b", "<id>"),
        (r"[\d.]+@(push|producer)-\d+#\d+", r"<\1>"),
        (r"[\d.]+@[\w-]*<ms>[#\d]*", "<tool>"),
        (r"127\.0\.0\.[12]:\d{4,5}", "<address>"),
        (r"\bV\d_\d+_\d+\b", "<version>"),
    )
]


def _words(arguments: str) -> Sequence[str]:
    return [word.strip("'") for word in arguments.split()]


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Cluster]]:
    home = tmp_path_factory.mktemp("mqadmin")
    with ExitStack() as opened:
        (home / "apache").mkdir()
        apache = Apache(home / "apache")
        opened.callback(apache.kill)
        port = free_port()
        apache.start("namesrv", port, NAMESRV=f"127.0.0.1:{port}")
        (home / "saturn").mkdir()
        ours = Processes(home / "saturn", opened).namesrv().ready["namesrv"]
        clusters = []
        for name, namesrv, host in (("apache", f"127.0.0.1:{port}", "127.0.0.1"), ("saturn", ours, "0.0.0.0")):
            files = home / f"{name}-broker"
            files.mkdir()
            broker = SharedBroker(
                files, apache, namesrv, {**PATIENT, "brokerIP1": ADVERTISED, "traceTopicEnable": "true"}
            )
            broker.start("apache" if name == "apache" else "saturn", host)
            opened.callback(broker.kill)
            tools = Apache(files)
            mqadmin = Mqadmin(tools)
            opened.callback(mqadmin.close)
            java = remoting_fixtures.start("java", files / "java")
            opened.callback(java.kill)
            clusters.append(Cluster(files, namesrv, broker, mqadmin, java))
        yield clusters


@dataclass(frozen=True)
class Answers:
    """To one step."""

    step: Step
    apaches: list[str]
    ours: list[str]


@pytest.fixture(scope="module")
def answers(clusters: list[Cluster]) -> list[Answers]:
    with ThreadPoolExecutor(len(clusters)) as threads:
        apaches, ours = threads.map(play, clusters)
    return [Answers(step, apache, our) for (step, apache), (_, our) in zip(apaches, ours, strict=True)]


def play(cluster: Cluster) -> list[tuple[Step, list[str]]]:
    """The script in one cluster."""
    said = []
    for step in SCRIPT:
        if isinstance(step, Situation):
            cluster.come_into(step)
        else:
            said.append((step, cluster.plain(cluster.run(step), step)))
    return said


@pytest.mark.parametrize("command", commands())
def test_command(answers: list[Answers], command: str) -> None:
    for answer in answers:
        step = answer.step
        if step.command != command:
            continue
        if step.not_applicable:
            assert any(NOT_SERVED.search(line) for line in answer.ours), (step, answer.ours)
            continue
        if step.is_same or step.apaches or step.ours or step.shared_names or step.varies:
            apaches, ours = reduced(step, answer.apaches, answer.ours)
            assert ours == apaches, step
        if step.differs and not step.varies:
            assert answer.ours != answer.apaches, f"{step} does not differ any more"


def test_every_command_is_in_the_table(clusters: list[Cluster]) -> None:
    said = clusters[0].mqadmin.help()
    assert {line.split()[0] for line in said.out.splitlines() if line.startswith("   ")} == commands().keys()


def reduced(step: Step, apaches: list[str], ours: list[str]) -> tuple[list[str], list[str]]:
    """Both, without what the step says of their difference."""
    if step.apaches:
        apaches = [line for line in apaches if not re.fullmatch(step.apaches, line)]
    if step.ours:
        ours = [line for line in ours if not re.fullmatch(step.ours, line)]
    if step.shared_names:
        names = {_name(line) for line in apaches} & {_name(line) for line in ours}
        apaches, ours = (sorted(line for line in lines if _name(line) in names) for lines in (apaches, ours))
    return apaches, ours


def _name(line: str) -> str:
    return line.partition(" = ")[0]
