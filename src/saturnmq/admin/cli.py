"""`saturnmq admin`: what needs the files of a store (`offline`), and what asks running servers (`online`, `health`)."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from saturnmq.admin import health, offline, online


def main(arguments: Sequence[str]) -> int:
    """The exit code, 0 when all is well; 2 when the arguments cannot be understood."""
    description = "Look into the files of a store, and operate running servers, ours or Apache's."
    parser = ArgumentParser("saturnmq admin", description=description, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    offline.add_commands(commands.add_parser)
    online.add_commands(commands.add_parser)
    health.add_commands(commands.add_parser)
    given = parser.parse_args(arguments)
    code: int = given.run(given)
    return code
