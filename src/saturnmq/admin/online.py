"""`saturnmq admin dlq` and `offsets`: verbs of `operations` on the command line."""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import datetime
from typing import Any, TypeAlias

import msgspec

from saturnmq.admin.deadletters import DeadLetter
from saturnmq.admin.operations import NotIndexed, Operations
from saturnmq.kernel.config import Limits
from saturnmq.kernel.errors import ProtocolError, SaturnError
from saturnmq.kernel.host import Address
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import MessageQueue
from saturnmq.net.clock import LoopClock
from saturnmq.net.remoting_client import RemotingClient

FOREVER_MS = (1 << 63) - 1

#: what a verb does; its exit code
Act: TypeAlias = Callable[[Operations, Namespace], Coroutine[Any, Any, int]]


def add_commands(add: Callable[..., ArgumentParser]) -> None:
    """`add` makes a parser of a command."""
    summary = "Dead letters of a consumer group, nobody of which need be online: list, resend, export."
    dlq = _verbs(add("dlq", help=summary, description=summary))
    for parser in (
        dlq("list", "Which there are, and why.", _list),
        dlq("export", "All of each, a JSON object a line.", _export),
    ):
        parser.add_argument("ids", metavar="ID", nargs="*", help="message ids; none: all of the time range")
        _add_range(parser)

    resends = dlq("resend", "Send messages again: the same id, keys, tag, properties and body.", _resend)
    resends.add_argument("ids", metavar="ID", nargs="*", help="message ids; or say --all or a time range")
    resends.add_argument("--all", action="store_true", help="all that were not sent again yet")
    _add_range(resends)
    resends.add_argument(
        "--to", default="topic", metavar="topic|group|NAME",
        help="the topic that it was sent to, where every group of the topic gets it again (default); the group's retry "
        "topic, where this group alone does; or a topic by its name",
    )  # fmt: skip
    resends.add_argument("--again", action="store_true", help="what was sent again already too")

    summary = "Send a consumer group elsewhere, online or not."
    offsets = _verbs(add("offsets", help=summary, description=summary))
    resets = offsets("reset", "Go on at a time, an offset, the first or behind the last message.", _reset)
    resets.add_argument("-t", "--topic", required=True, metavar="TOPIC")
    resets.add_argument("--to", required=True, metavar="earliest|latest|TIME|OFFSET", help="an OFFSET needs --queue")
    resets.add_argument("--queue", type=_queue, metavar="BROKER:ID", help="this queue alone")
    skips = offsets("skip", "Skip all that the group has not taken yet.", _reset)
    skips.add_argument("-t", "--topic", required=True, metavar="TOPIC")
    skips.set_defaults(to="latest", queue=None)


def _verbs(command: ArgumentParser) -> Callable[[str, str, Act], ArgumentParser]:
    verbs = command.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)

    def verb(name: str, summary: str, act: Act) -> ArgumentParser:
        parser: ArgumentParser = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        _add_common(parser)
        parser.set_defaults(run=lambda given: _run(act, given))
        return parser

    return verb


def _add_common(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--namesrv", type=_addresses, default=os.environ.get("NAMESRV_ADDR", "127.0.0.1:9876"),
        metavar="HOST:PORT[;…]", help="NameServers ($NAMESRV_ADDR, else 127.0.0.1:9876)",
    )  # fmt: skip
    parser.add_argument("-g", "--group", required=True, metavar="GROUP", help="the consumer group")


def _add_range(parser: ArgumentParser) -> None:
    hint = "2026-01-31, 2026-01-31T10:00, or milliseconds"
    parser.add_argument("--from", dest="start", type=_time, metavar="TIME", help=f"that died then or later: {hint}")
    parser.add_argument("--until", type=_time, metavar="TIME", help="that died before")


def _addresses(text: str) -> list[Address]:
    try:
        return [Address.parse(part) for part in text.split(";") if part.strip()]
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _time(text: str) -> int:
    if text.isdecimal() and len(text) > 8:
        return int(text)
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no time: write 2026-01-31T10:00, or milliseconds") from None


def _queue(text: str) -> tuple[str, int]:
    broker, _, number = text.rpartition(":")
    if not broker or not number.isdecimal():
        raise ArgumentTypeError(f"{text!r} is no queue: write BROKER:ID, as broker-a:0")
    return broker, int(number)


def _run(act: Act, given: Namespace) -> int:
    async def run() -> int:
        clock = LoopClock(asyncio.get_running_loop())
        client = RemotingClient(clock, Limits(), Metrics(), name="admin")
        try:
            return await act(Operations(client, given.namesrv), given)
        finally:
            await client.close()

    try:
        return asyncio.run(run())
    except (SaturnError, ProtocolError) as error:
        print(f"saturnmq: {error}", file=sys.stderr)
        return 1


# ------------------------------------------------------------------------------------------------------ dead letters


async def _letters(operations: Operations, given: Namespace) -> AsyncIterator[DeadLetter]:
    """As the arguments say. Raises SaturnError for an id that there is none of."""
    for message_id in given.ids:
        letters = await operations.find_dead_letters(given.group, message_id)
        if not letters:
            raise SaturnError(
                f"group {given.group} has no dead letter of message {message_id}: `saturnmq admin dlq list` shows all"
            )
        for letter in letters:
            yield letter
    if not given.ids:
        until_ms = FOREVER_MS if given.until is None else given.until
        async for letter in operations.dead_letters(given.group, given.start or 0, until_ms):
            yield letter


async def _list(operations: Operations, given: Namespace) -> int:
    count = 0
    async for letter in _letters(operations, given):
        if not count:
            print(f"{'DIED':<23}  {'MESSAGE ID':<34}  {'TOPIC':<20}  {'TRIES':>5}  {'REASON':<12}  {'AGAIN':<5}  KEYS")
        count += 1
        told = await _told(operations, letter)
        died = datetime.fromtimestamp(told["deadMs"] / 1000).isoformat(" ", "milliseconds")
        again = {True: "yes", False: "no", None: "?"}[told["resent"]]
        print(
            f"{died}  {told['messageId']:<34}  {told['topic']:<20}  {told['reconsumeTimes']:>5}  "
            f"{told['reason'] or '-':<12}  {again:<5}  {' '.join(told['keys'])}"
        )
    print(f"{count} dead letters of group {given.group}", file=sys.stderr)
    return 0


async def _export(operations: Operations, given: Namespace) -> int:
    async for letter in _letters(operations, given):
        print(msgspec.json.encode(await _told(operations, letter)).decode())
    return 0


async def _told(operations: Operations, letter: DeadLetter) -> dict[str, Any]:
    try:
        return letter.as_json(resent=await operations.is_resent(letter))
    except NotIndexed:
        return letter.as_json(resent=None)


async def _resend(operations: Operations, given: Namespace) -> int:
    if not given.ids and not given.all and given.start is None and given.until is None:
        raise SaturnError("say which: message ids, --from and --until, or --all")
    sent: set[str] = set()
    left_out = 0
    topics: dict[str, int] = {}
    try:
        async for letter in _letters(operations, given):
            where = {"topic": letter.topic, "group": ""}.get(given.to, given.to)
            to = where or await operations.retry_topic_for(letter)
            if letter.message_id not in sent and await operations.resend(letter, to, again=given.again):
                topics[to] = topics.get(to, 0) + 1
            else:
                left_out += 1  # or it died twice
            sent.add(letter.message_id)
    finally:  # what was done before an error was done
        for topic, count in topics.items():
            print(f"{count} sent again to {topic}")
        if left_out:
            print(f"{left_out} were sent again before: left out (--again sends them once more)")
    if not topics and not left_out:
        print(f"group {given.group} has no dead letters there")
    return 0


# ----------------------------------------------------------------------------------------------------------- offsets


async def _reset(operations: Operations, given: Namespace) -> int:
    queue = None if given.queue is None else MessageQueue(given.topic, *given.queue)
    timestamp_ms, offset = {"earliest": 0, "latest": -1}.get(given.to), -1
    if timestamp_ms is None and given.to.isdecimal() and queue is not None:
        timestamp_ms, offset = 0, int(given.to)
    if timestamp_ms is None:
        try:
            timestamp_ms = _time(given.to)
        except ArgumentTypeError as error:
            raise SaturnError(f"--to: {error}; or earliest, latest, or with --queue an offset") from None
    reset = await operations.reset(given.group, given.topic, timestamp_ms, queue=queue, offset=offset)
    for one, at in sorted(reset.items(), key=lambda item: (item[0].broker_name, item[0].queue_id)):
        print(f"{one.broker_name}:{one.queue_id} goes on at {at}")
    return 0
