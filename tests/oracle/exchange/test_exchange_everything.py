"""A directory changes hands twice while messages wait in every state at once: in flight, in FIFO batches, delayed by a
level and to a time, half, to be tried again; and groups have consumed some.

The stories are those of the other files of exchanges, lived side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import test_exchange_timer as timer
import test_exchange_transactions as transactions
from harness.apache import Apache
from harness.remoting import RemotingProcess
from harness.shared_broker import OTHER, Server, SharedBroker
from test_exchange import Snapshot, Story
from test_exchange_pop import OrderedStory
from test_exchange_pop import Story as PopStory

#: a lease that is still good when all the stories are ready and the next server has come up
LONG_MS = 80_000
#: else Apache, after a crash, indexes again what came since the checkpoint of the queues, which may be younger than
#: that of the index: ours syncs its index once a minute (CommitLog.isMappedFileMatchedRecover)
INDEX_SAFE = {"messageIndexSafe": "true"}


class Life:
    """All the stories of one directory."""

    def __init__(self, broker: SharedBroker, process: RemotingProcess) -> None:
        self._broker, self._process = broker, process
        self._plain = Story(1)
        self._popped = PopStory(broker, "popped", LONG_MS)
        self._ordered = OrderedStory(broker, "ordered", LONG_MS)
        self._delayed = timer.Story(broker, stretch=2)
        self._halves = transactions.Story(broker)
        self._told: Snapshot | None = None

    def start(self, server: Server) -> None:
        self._broker.start(server)
        self._delayed.started(server)
        if self._told is not None:
            Snapshot.of(self._broker, [self._plain]).assert_holds(self._told)

    def end(self, end: str) -> None:
        self._halves.wait_quiet()
        self._halves.leave()
        self._told = Snapshot.of(self._broker, [self._plain])
        self._delayed.ends()
        getattr(self._broker, end)()

    def leave(self) -> None:
        self._halves.leave()

    def first(self) -> None:
        self._plain.store(self._broker, self._process)
        side_by_side(self._popped.first, self._ordered.first, self._delayed.first, self._halves.first)
        self._plain.delay(self._broker, self._process)

    def second(self) -> None:
        side_by_side(
            self._check_plain, self._popped.second, self._ordered.second, self._delayed.second, self._halves.second
        )

    def _check_plain(self) -> None:
        assert self._told is not None
        self._plain.check_queries(self._broker, self._told.messages)
        self._plain.check_new_messages(self._broker)
        self._plain.check_delayed(self._broker)

    def third(self, end: str) -> None:
        side_by_side(
            partial(self._plain.check_progress, self._broker, self._process),
            self._popped.third,
            self._ordered.third,
            partial(self._delayed.third, most=1 if end == "stop" else 2),
            self._halves.third,
        )


def side_by_side(*chapters: Callable[[], None]) -> None:
    with ThreadPoolExecutor(len(chapters)) as threads:
        for told in [threads.submit(chapter) for chapter in chapters]:
            told.result()


@pytest.fixture
def broker(tmp_path: Path, apache: Apache, namesrv: str) -> Iterator[SharedBroker]:
    settings = {**timer.SETTINGS, **transactions.SETTINGS}
    broker = SharedBroker(tmp_path, apache, namesrv, settings, apaches=INDEX_SAFE)
    yield broker
    broker.kill()


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("first", ["apache", "saturn"])
def test_messages_in_every_state_change_hands_twice(
    broker: SharedBroker, remoting_process: Callable[[str], RemotingProcess], first: Server, end: str
) -> None:
    life = Life(broker, remoting_process("java"))
    try:
        for server, chapter in ((first, life.first), (OTHER[first], life.second)):
            life.start(server)
            chapter()
            life.end(end)
        life.start(first)
        life.third(end)
    finally:
        life.leave()
    broker.stop()
    assert broker.verify()[0] == []
