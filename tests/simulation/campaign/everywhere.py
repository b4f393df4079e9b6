"""All ends of one short life: power is cut behind every single thing that was done to the disk, and of what no sync
covered then survives nothing, everything, everything but one thing, one thing alone, and of each write its first or
its last sectors."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence

from campaign.checks import check, check_verify
from campaign.history import History
from campaign.life import DELAYS, Life
from campaign.lives import sectors
from campaign.process import HOUR_MS, POP_GROUPS, Process, Settings
from saturnmq.disk.simulated import Event, Operation, SimulatedDisk, Sparse, Survives, everything_survives
from saturnmq.testing.clock import VirtualClock

Ranges = Sequence[tuple[int, int]]
_ALL: Ranges = ((0, 1 << 30),)


def scripted(*, sync: bool) -> Iterator[Life]:
    """A life that begins with nothing and is killed, and one after it that is closed: sends, delays, pops,
    acknowledgements, offsets, full files, checkpoints, old files that are deleted."""
    chance, history, disk = random.Random(1), History(), SimulatedDisk()
    settings, clock = Settings(chance, sync=sync), VirtualClock()
    for closes in (False, True):
        life = Life(disk, clock, chance, settings, history)
        life.tell(check(life, history))
        _script(life)
        if closes:
            life.clock.advance(HOUR_MS)
            life.clean()
            life.close()
        yield life
        for _, facts in life.told:
            history.learn(facts)
        disk, clock = disk.crashed(None, everything_survives), VirtualClock(clock.now_ms())


def _script(life: Life) -> None:
    for topic, count, delay in (("orders", 1, None), ("notes", 3, None), ("bills", 1, DELAYS[0]), ("orders", 2, None)):
        life.send_some(topic, 0, count, delay)
        life.clock.run_soon()
    for group in POP_GROUPS:
        life.pop_some(group, "orders", 32, 10_000)
    life.clock.advance(1_500)
    life.acknowledge()
    life.write_offsets()
    life.clock.advance(9_500)
    for _ in range(6):
        life.send_some("notes", 1, 1, None)
        life.clock.run_soon()
    life.clock.advance(1_500)


def pending(disk: SimulatedDisk, events: int) -> list[Event]:
    """What no sync covers behind the first so many events."""
    found: list[Event] = []

    def survives(event: Event) -> Ranges:
        found.append(event)
        return ()

    disk.crashed(events, survives)
    return found


def survivals(unsynced: Sequence[Event]) -> Iterator[Survives]:
    """Events are told apart by who they are: two may be equal."""
    everything = {id(event): _ALL for event in unsynced}
    yield _survives({})
    yield _survives(everything)
    for event in unsynced:
        yield _survives({id(event): _ALL})
        yield _survives(everything | {id(event): ()})
        if event.operation is Operation.WRITE and event.path != "checkpoint":
            for cut in sectors(event)[1:-1]:
                yield _survives(everything | {id(event): ((0, cut),)})
                yield _survives(everything | {id(event): ((cut, len(event.data)),)})


def _survives(ranges: Mapping[int, Ranges]) -> Survives:
    return lambda event: ranges.get(id(event), ())


def try_everywhere(life: Life, every: int = 1) -> int:
    """Gives how many states were tried; `every` 2 leaves half of the moments out. Raises what is wrong with one, with a
    note that tells which."""
    seen: set[tuple[int, bytes]] = set()
    for events in range(0, len(life.disk.events) + 1, every):
        told = sum(at <= events for at, _ in life.told)
        for number, survives in enumerate(survivals(pending(life.disk, events))):
            after = life.disk.crashed(events, survives)
            state = told, _digest(after)
            if state not in seen:
                seen.add(state)
                try:
                    _try(life, after, told)
                except BaseException as error:
                    last = life.disk.events[events - 1] if events else None
                    error.add_note(f"behind event {events} ({last}), survival {number}")
                    raise
    return len(seen)


def _try(life: Life, after: SimulatedDisk, told: int) -> None:
    known = life.history.copy()
    for _, facts in life.told[:told]:
        if life.settings.sync:
            known.learn(facts)
        else:
            known.doubt(facts)
    check_verify(after, life.settings, closed=False)
    check(Process(after, VirtualClock(life.clock.now_ms()), random.Random(1), life.settings), known)


def _digest(disk: SimulatedDisk) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(disk.names):
        content = disk.inodes[disk.names[path]]
        digest.update(f"{path}\0{len(content)}\0".encode())
        if isinstance(content, Sparse):  # not its hole
            for number, page in sorted(content.pages.items()):
                digest.update(number.to_bytes(8, "big") + page)
        else:
            digest.update(content)
    digest.update("\0".join(sorted(disk.directories)).encode())
    return digest.digest()
