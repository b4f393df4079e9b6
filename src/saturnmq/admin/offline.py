"""`saturnmq admin inspect` and `verify`: what needs the files of a store and no server. Nothing is written."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from saturnmq.disk.readonly import ReadOnlyDisk
from saturnmq.kernel import configfile
from saturnmq.kernel.config import StoreConfig
from saturnmq.store.findings import Finding, Totals
from saturnmq.store.inspect import LOCK, UnknownFile, Wanted, inspect
from saturnmq.store.verify import is_store, verify

#: findings told of one file, unless all are asked for
FINDINGS_PER_FILE = 20


def add_commands(add: Callable[..., ArgumentParser]) -> None:
    """`add` makes a parser of a command."""
    summary = "Print a file of a store, or a data directory in short, as text."
    looks = add("inspect", help=summary, description=summary, allow_abbrev=False)
    looks.add_argument("path", metavar="PATH", help="a log, queue, index, checkpoint or config file, or a directory")
    looks.add_argument(
        "--from", dest="start", type=int, metavar="N", help="a log position, queue offset or number of an item"
    )
    looks.add_argument("--count", type=int, metavar="N", help="so many records, entries or items")
    looks.add_argument("--topic", metavar="T", help="only this topic")
    looks.add_argument("--body", dest="bodies", action="store_true", help="print bodies and properties too")

    summary = "Check a whole data directory: log, queues, index, checkpoint, config. Exits 1 when anything is damaged."
    checks = add("verify", help=summary, description=summary, allow_abbrev=False)
    checks.add_argument("path", metavar="DATA_DIR", help="a running server need not be stopped")
    checks.add_argument("--all", action="store_true", help=f"every finding, not only {FINDINGS_PER_FILE} of a file")

    for command in (looks, checks):
        command.add_argument("--json", action="store_true", help="a JSON object a line")
        command.add_argument(
            "-c", "--config", type=Path, metavar="FILE", help="the broker's .conf: file sizes, directories of the log"
        )
        command.add_argument(
            "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="a setting; repeatable"
        )
        command.set_defaults(run=_run)


def _run(given: Namespace) -> int:
    """The exit code: 0, 1 for damage, 2 when there is nothing to look at."""
    try:
        config = _config(given.config, given.settings)
        return _inspect(given, config) if given.command == "inspect" else _verify(given, config)
    except (UnknownFile, configfile.IllegalConfig, ValueError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")


def _fail(reason: str) -> int:
    print(f"saturnmq: {reason}", file=sys.stderr)
    return 2


def _config(file: Path | None, settings: list[str]) -> StoreConfig | None:
    """None when nothing was said: then the files tell what they can."""
    values = configfile.parse_properties(file.read_text(errors="replace")) if file is not None else {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise configfile.IllegalConfig(f"--set {setting}: write key=value")
        values[key] = value
    return configfile.convert(values, StoreConfig) if values else None


def _inspect(given: Namespace, config: StoreConfig | None) -> int:
    disk = ReadOnlyDisk("/")
    path = Path(given.path).absolute()
    _tell_if_live(path)
    wanted = Wanted(start=given.start, count=given.count, topic=given.topic, bodies=given.bodies)
    for line in inspect(disk, str(path), wanted, config):
        print(line.json() if given.json else line.text())
    return 0


def _tell_if_live(path: Path) -> None:
    """The lock file is in the data directory, at most three above a file of it."""
    for directory in (path, *list(path.parents)[:4]):
        holder = ReadOnlyDisk(str(directory)).lock_holder(LOCK)
        if holder is not None:
            print(f"saturnmq: process {holder} has {directory} open: what it holds changes", file=sys.stderr)
            return


def _verify(given: Namespace, config: StoreConfig | None) -> int:
    disk = ReadOnlyDisk(given.path)
    if not is_store(disk):
        return _fail(f"{given.path} is no data directory: it has no commit log, no queues, no checkpoint")
    holder = disk.lock_holder(LOCK)
    if holder is not None:
        print(
            f"saturnmq: process {holder} has {given.path} open: what it has not written yet is no damage",
            file=sys.stderr,
        )
    told: Counter[str] = Counter()

    def tell(finding: Finding) -> None:
        told[finding.path] += 1
        if given.json:
            kind = "damage" if finding.is_damage else "note"
            print(msgspec.json.encode({"kind": kind, **msgspec.to_builtins(finding)}).decode())
        elif given.all or told[finding.path] <= FINDINGS_PER_FILE:
            print(finding.text())

    begin_s = time.monotonic()
    totals = verify(disk, config, tell)
    seconds = time.monotonic() - begin_s
    if given.json:
        print(msgspec.json.encode({"kind": "totals", **msgspec.to_builtins(totals), "seconds": seconds}).decode())
    else:
        if not given.all:
            for path, count in told.items():
                if count > FINDINGS_PER_FILE:
                    print(f"        {path}: {count - FINDINGS_PER_FILE} more (--all)")
        print(_sum(totals, seconds))
    return 1 if totals.damages else 0


def _sum(totals: Totals, seconds: float) -> str:
    lines = [
        f"files     {totals.files:,}, {totals.bytes:,} bytes",
        f"log       {totals.records:,} records from {totals.log_begin} to {totals.log_end}",
        f"queues    {totals.queues:,}, {totals.entries:,} entries",
        f"index     {totals.index_items:,} items",
        *(f"topic     {count:,} messages in {topic}" for topic, count in sorted(totals.messages.items())),
        f"{totals.damages:,} damages, {totals.notes:,} notes, {seconds:.1f} s",
    ]
    return "\n".join(lines)
