"""A value that comes later: when the disk, a message or another process is ready.

Handlers answer `T | Later[T]` (written `Reply[T]`): a plain value where nothing has to be waited for, else a
`Later`. It is a callback with an owner, not a task: thousands of parked sends and long polls cost no scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar, cast

T = TypeVar("T")
U = TypeVar("U")
E = TypeVar("E", bound=BaseException)


class Later(Generic[T]):
    """One value or one error, delivered once to one listener. Owner: whoever created it resolves it.

    The listener may come before or after the value. After `cancel()` the listener hears nothing more, and the
    owner is told through `on_cancel`, so that a long poll of a client that went away takes nothing. Once answered or
    cancelled it lets go of listener and owner: they hold it too, and nothing is left to the garbage collector.
    """

    __slots__ = ("_deliver", "_error", "_fail", "_state", "_value", "on_cancel")

    _PENDING, _RESOLVED, _FAILED, _HEARD, _CANCELLED = range(5)

    def __init__(self, on_cancel: Callable[[], None] | None = None) -> None:
        self._state = Later._PENDING
        self._value: T | None = None
        self._error: BaseException | None = None
        self._deliver: Callable[[T], None] | None = None
        self._fail: Callable[[BaseException], None] | None = None
        self.on_cancel = on_cancel

    @property
    def pending(self) -> bool:
        return self._state == Later._PENDING

    def then(self, deliver: Callable[[T], None], fail: Callable[[BaseException], None]) -> None:
        """Set the one listener. Called at once when the value or the error is already there."""
        assert self._deliver is None, "a Later has one listener"
        assert self._state != Later._HEARD, "a Later has one listener"
        if self._state == Later._RESOLVED:
            deliver(cast(T, self._value))
        elif self._state == Later._FAILED:
            fail(cast(BaseException, self._error))
        else:
            self._deliver, self._fail = deliver, fail

    def resolve(self, value: T) -> None:
        """Deliver the value. After `cancel()` nobody hears it; a second answer is a bug."""
        if self._state == Later._CANCELLED:
            return
        assert self._state == Later._PENDING, "a Later is answered once"
        deliver = self._deliver
        self._deliver = self._fail = self.on_cancel = None
        if deliver is None:
            self._state, self._value = Later._RESOLVED, value
        else:
            self._state = Later._HEARD
            deliver(value)

    def fail(self, error: BaseException) -> None:
        """Deliver an error instead of the value."""
        if self._state == Later._CANCELLED:
            return
        assert self._state == Later._PENDING, "a Later is answered once"
        fail = self._fail
        self._deliver = self._fail = self.on_cancel = None
        if fail is None:
            self._state, self._error = Later._FAILED, error
        else:
            self._state = Later._HEARD
            fail(error)

    def cancel(self) -> None:
        """The listener is gone: drop it and tell the owner. Does nothing once answered."""
        if self._state != Later._PENDING:
            return
        self._state = Later._CANCELLED
        on_cancel = self.on_cancel
        self._deliver = self._fail = self.on_cancel = None
        if on_cancel is not None:
            on_cancel()

    def map(self, change: Callable[[T], U]) -> Later[U]:
        """The same wait with another value. An exception out of `change` becomes the error."""
        mapped: Later[U] = Later(self.cancel)

        def deliver(value: T) -> None:
            try:
                changed = change(value)
            except Exception as error:  # noqa: BLE001 - it reaches the listener of the mapped Later
                mapped.fail(error)
            else:
                mapped.resolve(changed)

        self.then(deliver, mapped.fail)
        return mapped


Reply: TypeAlias = T | Later[T]


def after(reply: Reply[T], change: Callable[[T], U]) -> Reply[U]:
    """Apply `change` to a reply, now or when it comes."""
    if isinstance(reply, Later):
        return cast("Later[T]", reply).map(change)
    return change(reply)


def hear(reply: Reply[T], deliver: Callable[[T], None], fail: Callable[[BaseException], None]) -> None:
    """Hand a reply to `deliver` or `fail`, now or when it comes."""
    if isinstance(reply, Later):
        cast("Later[T]", reply).then(deliver, fail)
    else:
        deliver(reply)


def rescue(
    act: Callable[[], Reply[T]], kinds: type[E] | tuple[type[E], ...], mend: Callable[[E], Reply[U]]
) -> Reply[T | U]:
    """What `act` answers; an error of these kinds, raised or delivered, becomes what `mend` makes of it."""
    try:
        reply = act()
    except kinds as error:
        return cast("Reply[T | U]", mend(error))
    if not isinstance(reply, Later):
        return reply
    rescued: Later[T | U] = Later(reply.cancel)

    def fail(error: BaseException) -> None:
        if not isinstance(error, kinds):
            rescued.fail(error)
            return
        try:
            mended = mend(error)
        except Exception as another:  # noqa: BLE001 - it reaches the listener of the rescued Later
            rescued.fail(another)
            return
        if isinstance(mended, Later):
            rescued.on_cancel = mended.cancel
        hear(mended, rescued.resolve, rescued.fail)

    cast("Later[T]", reply).then(rescued.resolve, fail)
    return rescued


def gather(replies: Sequence[Reply[T]]) -> Reply[list[T]]:
    """All the values, in order, when the last one is there. The first error is the error of all."""
    waiting = [reply for reply in replies if isinstance(reply, Later)]
    if not waiting:
        return cast("list[T]", list(replies))

    def cancel() -> None:
        for later in waiting:
            later.cancel()

    gathered: Later[list[T]] = Later(cancel)
    values = list(replies)
    missing = len(waiting)

    def listen(index: int, later: Later[T]) -> None:
        def deliver(value: T) -> None:
            nonlocal missing
            values[index] = value
            missing -= 1
            if missing == 0:
                gathered.resolve(cast("list[T]", values))

        def fail(error: BaseException) -> None:
            if gathered.pending:
                gathered.fail(error)

        later.then(deliver, fail)

    for index, reply in enumerate(replies):
        if isinstance(reply, Later):
            listen(index, reply)
    return gathered


def chain(reply: Reply[T], step: Callable[[T], Reply[U]]) -> Reply[U]:
    """Go on with `step`, which may have to wait itself, now or when the reply comes."""
    if not isinstance(reply, Later):
        return step(reply)
    chained: Later[U] = Later(reply.cancel)

    def deliver(value: T) -> None:
        try:
            following = step(value)
        except Exception as error:  # noqa: BLE001 - it reaches the listener of the chained Later
            chained.fail(error)
            return
        if isinstance(following, Later):
            chained.on_cancel = following.cancel
        hear(following, chained.resolve, chained.fail)

    cast("Later[T]", reply).then(deliver, chained.fail)
    return chained
