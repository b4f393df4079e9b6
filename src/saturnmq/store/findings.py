"""What `saturnmq admin verify` says of a data directory."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it should be.

    A note is what a server at work or its crash leaves, and what a start sets right without loss; damage is the rest.
    """

    is_damage: bool
    path: str
    #: byte of the file
    at: int | None
    what: str
    #: what a start of the server does about it, and what to do else
    effect: str

    def text(self) -> str:
        where = self.path if self.at is None else f"{self.path} at {self.at}"
        return f"{'DAMAGE' if self.is_damage else 'note':7} {where}: {self.what}; {self.effect}"


Tell = Callable[[Finding], None]


class Totals(msgspec.Struct):
    """What was looked at."""

    files: int = 0
    bytes: int = 0
    records: int = 0
    queues: int = 0
    entries: int = 0
    index_items: int = 0
    log_begin: int = 0
    log_end: int = 0
    damages: int = 0
    notes: int = 0
    #: by topic
    messages: dict[str, int] = {}


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How the last server left the directory."""

    #: a server is at work: what is behind the others may come yet
    live: bool
    #: the last server did not stop: a start takes nothing for granted that is not durable
    crashed: bool
    #: a start gives the entries of all records from this log position on to the queues anew
    rebuilt_from: int
    #: store time up to which index files have their slots, too
    index_ms: int
