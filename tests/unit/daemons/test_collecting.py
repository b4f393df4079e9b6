from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from saturnmq.daemons.collecting import LOOK_MS, Collecting
from saturnmq.testing.clock import VirtualClock


class Node:
    """In a cycle with itself."""

    alive = 0

    def __init__(self) -> None:
        self.itself = self
        Node.alive += 1

    def __del__(self) -> None:
        Node.alive -= 1


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    clock = VirtualClock()
    collecting = Collecting(clock, few_objects=0)
    collecting.start()
    yield clock
    collecting.stop()
    gc.unfreeze()
    assert collecting._collected not in gc.callbacks


def test_what_lives_is_not_looked_at_again(clock: VirtualClock) -> None:
    nodes = [Node() for _ in range(10)]
    gc.collect()
    assert not gc.get_objects(generation=2), "the next full collection has nothing of it to look at"
    nodes.clear()
    assert gc.collect() == 0
    assert Node.alive == 10


def test_garbage_is_bounded(clock: VirtualClock) -> None:
    """It is found once there is twice as much of everything."""
    nodes = [Node() for _ in range(2 * gc.get_freeze_count())]
    gc.freeze()
    nodes.clear()
    clock.advance(LOOK_MS - 1)
    assert Node.alive > 0
    clock.advance(1)
    assert Node.alive == 0
