"""The short campaign of `make check`. `make simulate` is the long one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from campaign.everywhere import scripted, try_everywhere
from campaign.lives import Campaign, Totals
from campaign.planted import FAULTS, seeds_until_found
from campaign.process import listen, stop_listening


@pytest.fixture(autouse=True)
def _listen() -> Iterator[None]:
    listen()
    yield
    stop_listening()


#: one that is new at every run; CI tries the same ones every time, as hypothesis does there
NEW = () if os.environ.get("CI") else (None,)


@pytest.mark.parametrize("seed", [*range(1, 13), *NEW])
def test_lives(seed: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    if seed is None:
        seed = time.time_ns() // 1000 % 1_000_000_000
        with capsys.disabled():
            print(f" (seed {seed}) ", end="", flush=True)
    totals = Totals()
    Campaign(seed, totals).run()
    assert totals.lives == 6
    assert totals.messages > 0


def test_a_seed_is_always_the_same_campaign() -> None:
    totals = [Totals(), Totals()]
    for each in totals:
        Campaign(7, each, lives=3).run()
    assert totals[0] == totals[1]


@pytest.mark.parametrize("sync", [True, False])
def test_ends_of_scripted_lives(sync: bool) -> None:
    states = [try_everywhere(life, every=7) for life in scripted(sync=sync)]
    assert min(states) > 100


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    assert seeds_until_found(fault) is not None
