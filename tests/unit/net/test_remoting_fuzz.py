"""Recorded requests, changed at random, to the handlers of both servers. tests/long sends millions."""

from pathlib import Path

import pytest

from saturnmq.testing.fuzz import Fuzz, recordings

FRAMES = 1_500
RECORDED = recordings(Path(__file__).parents[2] / "vectors")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_escapes_and_neighbours_are_answered(seed: int) -> None:
    fuzz = Fuzz(seed, RECORDED)
    fuzz.run(FRAMES)
    assert fuzz.reached > FRAMES / 2, "most of it must be understood, or it tests nothing"
    fuzz.close()


def test_a_seed_gives_the_same_frames() -> None:
    first, second = Fuzz(7, RECORDED), Fuzz(7, RECORDED)
    for fuzz in (first, second):
        fuzz.run(300)
    assert first.reached == second.reached
    assert [port.metrics_text() for port in first.ports.values()] == [
        port.metrics_text() for port in second.ports.values()
    ]
