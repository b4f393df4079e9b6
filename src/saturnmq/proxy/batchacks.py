"""What one turn acknowledges at a broker, in one request (`enableBatchAck`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import ConnectionLost, RequestTimeout, SaturnError
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import Delivery

#: in one request
MOST = 1_000


class BatchAcks:
    """Owner of the acknowledgements that wait for the end of the turn. A broker takes the request though it does not
    know some of the messages."""

    def __init__(
        self, one: Callable[[Delivery], Later[None]], several: Callable[[Sequence[Delivery]], Later[None]], clock: Clock
    ) -> None:
        self._one, self._several, self._clock = one, several, clock
        self._waiting: list[tuple[Delivery, Later[None]]] = []

    def ack(self, delivery: Delivery) -> Later[None]:
        if not self._waiting:
            self._clock.call_soon(self._send)
        answer: Later[None] = Later()
        self._waiting.append((delivery, answer))
        if len(self._waiting) == MOST:
            self._send()
        return answer

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        if len(waiting) < 2:
            self._send_each(waiting)
            return

        def done(_: None) -> None:
            for one in waiting:
                one[1].resolve(None)

        def failed(error: BaseException) -> None:
            if not isinstance(error, ConnectionLost | RequestTimeout):
                self._send_each(waiting)  # one that the broker refuses must not spoil the others
                return
            for one in waiting:
                one[1].fail(error)

        try:
            asked = self._several([delivery for delivery, _ in waiting])
        except SaturnError as error:
            failed(error)
        else:
            asked.then(done, failed)

    def _send_each(self, waiting: list[tuple[Delivery, Later[None]]]) -> None:
        for delivery, answer in waiting:
            try:
                asked = self._one(delivery)
            except SaturnError as error:
                answer.fail(error)
            else:
                asked.then(answer.resolve, answer.fail)
