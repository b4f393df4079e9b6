"""Lives one after the other on one disk, as one seed draws them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from campaign.checks import check, check_verify, check_verify_finds, is_old
from campaign.damage import SECTOR_BYTES, Damage
from campaign.history import Facts, History, key_of, must, name
from campaign.life import Life
from campaign.process import HOUR_MS, POP_GROUPS, Process, Settings
from saturnmq.disk.simulated import Event, Operation, SimulatedDisk, Survives, everything_survives, nothing_survives
from saturnmq.store.keys import KeyKind
from saturnmq.testing.clock import VirtualClock
from saturnmq.wire.record import decode


@dataclass
class Totals:
    campaigns: int = 0
    lives: int = 0
    states: int = 0
    events: int = 0
    messages: int = 0
    flips: int = 0
    faults: int = 0
    deleted_files: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{value:,} {what.replace('_', ' ')}" for what, value in vars(self).items())


def torn(chance: random.Random) -> Survives:
    """Of what no sync covered: nothing, all, a beginning, or sectors in any order."""

    def survives(event: Event) -> Sequence[tuple[int, int]]:
        size = len(event.data)
        kind = chance.randrange(4)
        if kind == 0:
            return ()
        if kind == 1 or event.operation is not Operation.WRITE or event.path == "checkpoint":
            return ((0, size),)
        edges = sectors(event)
        if kind == 2:
            return ((0, chance.choice(edges)),)
        return [piece for piece in pairwise(edges) if chance.random() < 0.6]

    return survives


def sectors(write: Event) -> list[int]:
    """Where in its data a write may be torn, with its two ends."""
    size = len(write.data)
    return [0, *range(-write.offset % SECTOR_BYTES or SECTOR_BYTES, size, SECTOR_BYTES), size]


class Campaign:
    """All lives of one seed. After each, some of the ends that it might have had are looked at, and it has one."""

    def __init__(self, seed: int, totals: Totals, *, lives: int = 6, steps: int = 60, looks: int = 8) -> None:
        self.seed, self.totals, self._lives, self._steps, self._looks = seed, totals, lives, steps, looks
        self.chance = random.Random(seed)
        self.settings = Settings(self.chance)
        self.history = History()
        self.clock = VirtualClock()
        #: the disk that is to be damaged has half-written records
        self._is_torn = False

    def run(self) -> None:
        """Raises whatever is wrong, with a note that says how to see it again."""
        disk = SimulatedDisk()
        try:
            for _ in range(self._lives):
                disk = self._live(disk)
            self._end(disk)
        except BaseException as error:
            error.add_note(f"make simulate SEED={self.seed}")
            raise
        self.totals.campaigns += 1

    def _live(self, disk: SimulatedDisk) -> SimulatedDisk:
        chance, totals = self.chance, self.totals
        life = self._born(disk)
        for _ in range(chance.randint(1, self._steps)):
            life.step()
        closed = chance.random() < 0.25
        if closed:
            self._close(life)
        totals.lives += 1
        totals.events += len(disk.events)
        totals.messages += life.sent
        totals.faults += life.faults
        totals.deleted_files += life.deleted_files
        for _ in range(chance.randint(0, self._looks)):
            self._look(life)
        after = self._cut(life, self.history, len(disk.events) if closed or chance.random() < 0.3 else None, closed)
        self.clock = VirtualClock(self.clock.now_ms() + chance.choice((0, 1, 5_000, 100_000)))
        self._damage(after, self.history)
        return after

    def _born(self, disk: SimulatedDisk) -> Life:
        life = Life(disk, self.clock, self.chance, self.settings, self.history)
        life.tell(check(life, self.history))
        return life

    def _close(self, life: Life) -> None:
        life.disk.faults.clear()
        life.close()
        if not life.faults:
            life.tell(Facts(written=life.progress))
            if not self.history.flipped:
                check_verify(life.disk, self.settings, closed=True)

    # ------------------------------------------------------------------------------------------------ ends

    def _cut(self, life: Life, history: History, events: int | None, closed: bool = False) -> SimulatedDisk:
        """The disk when power is cut behind so many events (None: any), and `history` what is known then."""
        disk, chance = life.disk, self.chance
        if events is None:
            events = self._moment(life)
        survives = self._survival()
        # what was in the page cache stays there as long as the system lives, unless its disk failed
        promised = self.settings.sync or (not life.faults and (closed or survives is everything_survives))
        for at, facts in life.told:
            if at > events:
                history.unsure |= facts.acknowledged
            elif promised:
                history.learn(facts)
            else:
                history.doubt(facts)
        after = disk.crashed(events, survives)
        if not history.flipped and chance.random() < 0.3:
            check_verify(after, self.settings, closed=False)
        return after

    def _moment(self, life: Life) -> int:
        """Any, or just when somebody was told something."""
        kind = self.chance.choice(("", "sent", "seen", "acknowledged", "written", "came"))
        moments = [at for at, facts in life.told if kind and getattr(facts, kind)]
        return self.chance.choice(moments) if moments else self.chance.randint(0, len(life.disk.events))

    def _survival(self) -> Survives:
        survives = self.chance.choice((nothing_survives, everything_survives, torn(self.chance)))
        self._is_torn = self._is_torn or survives not in (nothing_survives, everything_survives)
        return survives

    def _look(self, life: Life) -> None:
        """Another end that this life might have had; recovery too may be cut off."""
        known = self.history.copy()
        after = self._cut(life, known, None)
        for _ in range(self.chance.choice((0, 0, 1, 2))):
            Process(after, VirtualClock(self.clock.now_ms()), self.chance, self.settings)
            after = after.crashed(self.chance.randint(0, len(after.events)), self._survival())
        self.totals.states += 1
        self._damage(after, known)
        check(Process(after, VirtualClock(self.clock.now_ms()), self.chance, self.settings), known)

    def _damage(self, disk: SimulatedDisk, history: History) -> None:
        if self.chance.random() < 0.3:
            damage = Damage(disk, self.settings, history, self.chance)
            damage.do(checkpoint=not self._is_torn)
            self.totals.flips += len(damage.flipped)
            if damage.flipped:
                check_verify_finds(disk, self.settings, damage.flipped)
        self._is_torn = False

    # ------------------------------------------------------------------------------------------------- the end

    def _end(self, disk: SimulatedDisk) -> None:
        """Nothing fails any more, and whoever is owed something gets it."""
        history = self.history
        life = self._born(disk)
        life.clock.advance(20_000)
        self._find_by_key(life)
        for group in POP_GROUPS:
            self._drain(life, group)
        life.clock.advance(3 * HOUR_MS)
        self._delayed_came(life)
        self._close(life)
        check(Process(disk.crashed(None, nothing_survives), self.clock, self.chance, self.settings), history)

    def _find_by_key(self, life: Life) -> None:
        sent = [(topic, body) for (topic, _, _), body in self.history.sent.items() if body not in self.history.damaged]
        for topic, body in self.chance.sample(sent, min(20, len(sent))):
            if not is_old(life, self.history, body):
                found = life.wait(life.store.query(topic, key_of(body), 32, 0, 1 << 50, KeyKind.UNIQUE))
                must(body in [decode(record).body for record in found], 7, f"{name(body)} is not found by its key")

    def _drain(self, life: Life, group: str) -> None:
        history = self.history
        got = life.drain(group) | history.damaged
        got.update(body for who, body, _ in history.acknowledged | history.unsure if who == group)
        for place, body in history.sent.items():
            if body not in got:
                must(is_old(life, history, body), 4, f"{group} never gets {name(body)} of {place}")

    def _delayed_came(self, life: Life) -> None:
        history = self.history
        came = history.came.union(*(facts.came for _, facts in life.told))
        for body in history.delayed:
            if name(body) in history.came_unsure and life.clock.now_ms() - history.due[body] >= HOUR_MS:
                continue  # it may have been deleted since
            must(name(body) in came, 6, f"{name(body)} never came")
