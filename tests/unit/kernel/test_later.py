from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

import pytest

from saturnmq.kernel.later import Later, Reply, after, chain, gather, rescue


def increment(value: int) -> Reply[int]:
    return value + 1


def hand_on(later: Reply[int]) -> Reply[int]:
    return later


def raise_it(error: BaseException) -> None:
    raise error


def test_the_listener_may_come_before_or_after_the_value() -> None:
    heard: list[int] = []
    early: Later[int] = Later()
    early.then(heard.append, raise_it)
    early.resolve(1)
    late: Later[int] = Later()
    late.resolve(2)
    late.then(heard.append, raise_it)
    assert heard == [1, 2]
    assert not early.pending


def test_an_error_reaches_the_listener() -> None:
    heard: list[BaseException] = []
    later: Later[int] = Later()
    later.then(lambda _: None, heard.append)
    error = ValueError("no")
    later.fail(error)
    assert heard == [error]


def test_cancel_tells_the_owner_once_and_silences_the_value() -> None:
    told: list[str] = []
    heard: list[int] = []
    later: Later[int] = Later(lambda: told.append("cancelled"))
    later.then(heard.append, raise_it)
    later.cancel()
    later.cancel()
    later.resolve(1)
    assert (told, heard) == (["cancelled"], [])


def test_map_changes_the_value_passes_errors_and_cancels_the_source() -> None:
    told: list[str] = []
    heard: list[object] = []
    source: Later[int] = Later(lambda: told.append("cancelled"))
    source.map(str).then(heard.append, raise_it)
    source.resolve(7)
    broken: Later[int] = Later()
    broken.map(lambda value: value // 0).then(heard.append, heard.append)
    broken.resolve(1)
    failing: Later[int] = Later()
    failing.map(str).then(heard.append, heard.append)
    failing.fail(KeyError("k"))
    other: Later[int] = Later(lambda: told.append("cancelled"))
    other.map(str).cancel()
    assert heard[0] == "7"
    assert isinstance(heard[1], ZeroDivisionError)
    assert isinstance(heard[2], KeyError)
    assert told == ["cancelled"]


def test_after_takes_values_and_laters() -> None:
    assert after(2, str) == "2"
    later: Later[int] = Later()
    heard: list[str] = []
    mapped = after(later, str)
    assert isinstance(mapped, Later)
    mapped.then(heard.append, raise_it)
    later.resolve(3)
    assert heard == ["3"]


def test_a_second_answer_is_a_bug() -> None:
    later: Later[int] = Later()
    later.resolve(1)
    with pytest.raises(AssertionError):
        later.resolve(2)


@pytest.mark.parametrize(
    "end",
    [
        lambda source, end: source.resolve(1),
        lambda source, end: source.fail(ValueError("no")),
        lambda source, end: end.cancel(),
    ],
)
def test_nothing_is_left_to_the_garbage_collector(end: Callable[[Later[int], Later[list[int]]], None]) -> None:
    """A long poll is several of them, which know each other."""
    gc.collect()
    gc.disable()
    try:
        source: Later[int] = Later()
        chained = chain(source.map(int), increment)
        gathered = gather([rescue(partial(hand_on, chained), KeyError, lambda _: 0)])
        assert isinstance(gathered, Later)
        gathered.then(lambda _: None, lambda _: None)
        end(source, gathered)
        del source, chained, gathered
        assert gc.collect() == 0
    finally:
        gc.enable()
