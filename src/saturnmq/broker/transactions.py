"""Transactions: half messages are committed or rolled back, and producers are asked about those that nobody ends.

A commit is acknowledged when the message is durable in its topic, a rollback when its op message is. What was committed
less than transactionOpBatchInterval before a crash, its op message not yet written, is asked about again, and may be
delivered twice. Nothing is lost, and what is ended for good is not asked about again.

Every transactionCheckInterval, while there are pending half messages, one pass looks at those that are due: each is
written again, with one check more, and then a producer of its group is asked, any that is connected. After
transactionCheckMax checks it is given up: TRANS_CHECK_MAX_TIME_TOPIC keeps it, for an operator to bring back
(`resume`). Unlike at Apache's broker it does not matter how old it is, for no pending half message is deleted with the
log.
"""

from __future__ import annotations

import logging

import msgspec

from saturnmq.broker import halfmessages
from saturnmq.broker.clients import ClientTable
from saturnmq.broker.halfmessages import Half
from saturnmq.broker.halves import Halves
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.topics import TopicTable
from saturnmq.broker.transactionmetrics import TransactionMetrics
from saturnmq.kernel import properties as names
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import IllegalOperation, InvalidTransactionId, SaturnError, TopicNotFound
from saturnmq.kernel.later import Reply, chain, hear
from saturnmq.kernel.message import Appended, Message
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.ports import EndTransactionRequest, Resolution, TransactionCheck
from saturnmq.kernel.topic import HALF_TOPIC, OP_HALF_TOPIC, TRANS_CHECK_MAX_TIME_TOPIC
from saturnmq.store.dispatch import find_property
from saturnmq.store.results import Arrival, Found
from saturnmq.store.store import Store
from saturnmq.wire import record

log = logging.getLogger(__name__)

#: half messages, and bytes of them, that one turn of the loop looks at
_TURN_MESSAGES, _TURN_BYTES = 32, 1 << 20
#: half messages for which one time is remembered: when the first of them is due
_BLOCK = 256
#: before a pass goes on when producers are slow to read
_SLOW_MS = 100
#: of the groups that nobody answers for, in one line of the log
_NAMED = 5
#: commits that are remembered, so that a repeated one is not delivered again
_COMMITS = 65_536


class Transactions:
    """Ends transactions. Owns when the pending ones are looked at next, and which were committed last."""

    def __init__(
        self,
        config: BrokerConfig,
        store: Store,
        clock: Clock,
        topics: TopicTable,
        clients: ClientTable,
        offsets: OffsetTable,
        metrics: Metrics,
    ) -> None:
        self._store, self._clock, self._topics, self._clients = store, clock, topics, clients
        self._halves = Halves(config, store, clock, offsets)
        self.configure(config)
        self.metrics = TransactionMetrics(store, clock, metrics, config.transaction_metric_flush_interval)
        #: by origin: where the log must be durable up to
        self._committed: dict[int, int] = {}
        #: by block: nothing in it is due before
        self._dues: dict[int, int] = {}
        self._running = False
        #: of the next pass; None while there is one, or nothing to look at
        self._timer: Timer | None = None
        self._pass: _Pass | None = None
        #: of a group, whoever is next is asked
        self._turn = 0

    def configure(self, config: BrokerConfig) -> None:
        """Take over what may change while the broker runs."""
        self._config = config
        self._halves.configure(config)

    # ------------------------------------------------------------------------------------------ starting, stopping

    def load(self) -> None:
        """Raises ValueError when the file of the numbers and its .bak are broken."""
        self.metrics.load()

    def start(self) -> Reply[None]:
        """Answers when it is known what is pending. Fails with OSError."""
        return chain(self._halves.load(), self._begin)

    def _begin(self, _: None) -> None:
        self._running = True
        self._arm()

    def stop(self) -> Reply[None]:
        """Write what is not written. The group's offsets are written after it."""
        self._running = False
        self._pass = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._halves.stop()
        return self.metrics.write()

    def pending_from(self, end: int) -> Reply[int]:
        """`store.retention.Lodger`: of messages that are pending, and of op messages that have to be known."""
        if not self._running:
            return 0
        places = [(HALF_TOPIC, 0, self._halves.low), (OP_HALF_TOPIC, 0, self._halves.op_low)]
        return self._store.first_position(places, end)

    def arrived(self, arrival: Arrival) -> None:
        """A half message can be read now."""
        if find_property(arrival.properties, b"TRAN_PREPARED_QUEUE_OFFSET") is None:
            topic = find_property(arrival.properties, b"REAL_TOPIC") or b""
            self.metrics.change(topic.decode("utf-8", "replace"), 1)
        self._arm()

    # ------------------------------------------------------------------------------------------------------- ending

    def end(self, request: EndTransactionRequest) -> Reply[None]:
        """Answers when it is durable. Ending it again changes nothing, while the broker knows of the first time. Raises
        InvalidTransactionId, IllegalOperation, TopicNotFound."""
        if request.resolution is Resolution.UNKNOWN:
            return None
        found = self._store.record_at(request.commit_log_offset)
        return chain(found, lambda data: self._found(request, data))

    def _found(self, request: EndTransactionRequest, data: bytes | None) -> Reply[None]:
        half = self._half(request, data)
        # a record that somebody sent as the body of another is none
        position = self._store.position_at(HALF_TOPIC, 0, half.offset)
        return chain(position, lambda position: self._end(request, half, position))

    def _half(self, request: EndTransactionRequest, data: bytes | None) -> Half:
        """The texts are Apache's (EndTransactionProcessor#checkPrepareMessage)."""
        half = halfmessages.read(data) if data is not None else None
        if half is None or half.stored.topic != HALF_TOPIC:
            raise InvalidTransactionId("Find prepared transaction message failed")
        if half.properties.get(names.PRODUCER_GROUP) != request.producer_group:
            raise InvalidTransactionId("The producer group wrong")
        if half.offset != request.half_offset:
            raise InvalidTransactionId("The transaction state table offset wrong")
        if request.message_id is not None and half.properties.get(names.UNIQUE_KEY) != request.message_id:
            raise InvalidTransactionId("The message id wrong")
        return half

    def _end(self, request: EndTransactionRequest, half: Half, position: int) -> Reply[None]:
        if position != request.commit_log_offset:
            raise InvalidTransactionId("The commit log offset wrong")
        if not request.from_check:
            self._check_time(half)
        if self._is_deleted(half):
            self._halves.finish(half.offset, half.origin)
            raise TopicNotFound(f"topic[{half.topic}] was deleted since the half message was sent")
        return self._commit(half) if request.resolution is Resolution.COMMIT else self._roll_back(half)

    def _check_time(self, half: Half) -> None:
        """Who says how long nobody shall ask must not come later than that by himself."""
        if not half.properties.get(names.CHECK_IMMUNITY_TIME_IN_SECONDS):
            return
        immunity_ms = max(halfmessages.immunity_ms(half.properties) or 0, self._config.transaction_time_out)
        if self._clock.now_ms() - half.stored.stored_ms > immunity_ms:
            raise IllegalOperation(
                f"the transaction is older than {immunity_ms} ms (CHECK_IMMUNITY_TIME_IN_SECONDS): it is ended when "
                "the broker asks"
            )

    def _is_deleted(self, half: Half) -> bool:
        """With its topic. To one of that name it does not belong."""
        return half.stored.commit_log_offset < self._store.deleted_before(half.topic)

    def _commit(self, half: Half) -> Reply[None]:
        durable_at = self._committed.get(half.origin)
        if durable_at is None:
            (appended,) = self._store.append((half.committed(),), again=True)
            durable_at = self._committed[half.origin] = appended.end
            if len(self._committed) > _COMMITS:
                del self._committed[next(iter(self._committed))]
            self._ended(half)
            self.metrics.committed.add((half.topic,))
            age_ms = self._clock.now_ms() - half.stored.born_ms  # by the producer's clock, as Apache's
            self.metrics.latency.add(max(age_ms, 0) // 1000, (half.topic,))
        return self._store.when_durable(durable_at, None)

    def _roll_back(self, half: Half) -> Reply[None]:
        self._ended(half)
        self.metrics.rolled_back.add((half.topic,))
        written = self._halves.write()
        return self._store.when_durable(self._store.end if written is None else written.end, None)

    def _ended(self, half: Half) -> None:
        if self._halves.is_pending(half.offset):  # else a copy of it is, or none
            self.metrics.change(half.topic, -1)
        self._halves.finish(half.offset, half.origin)

    # ------------------------------------------------------------------------------------------------------ checking

    def _arm(self) -> None:
        """See to a pass, while there is something to look at."""
        if self._running and self._timer is None and self._pass is None and self._halves.low < self._halves.end:
            self._timer = self._clock.call_at(
                self._clock.now_ms() + self._config.transaction_check_interval, self._look
            )

    def _look(self) -> None:
        self._timer = None
        end = self._store.max_offset(HALF_TOPIC, 0)
        self._pass = _Pass(at=self._halves.low, end=end, now_ms=self._clock.now_ms())
        self._dues = {block: due_ms for block, due_ms in self._dues.items() if (block + 1) * _BLOCK > self._halves.low}
        self._step()

    def _step(self) -> None:
        """Go on with the pass: a batch of what is pending."""
        self._timer, going = None, self._pass
        if going is None:
            return
        while True:
            at = going.at = self._halves.next_pending(going.at)
            block = at // _BLOCK
            if at >= going.end or block != going.block:
                self._leave_block(going)
            if at >= going.end:
                self._over()
                return
            if self._dues.get(block, 0) <= going.now_ms:
                break
            going.at = (block + 1) * _BLOCK
        going.block = block
        most = min(_TURN_MESSAGES, going.end - at, (block + 1) * _BLOCK - at)
        try:
            reply = self._store.get(HALF_TOPIC, 0, at, most, _TURN_BYTES)
        except (SaturnError, OSError) as error:
            self._failed(error)
        else:
            hear(reply, lambda found: self._act(going, found), self._failed)

    def _leave_block(self, going: _Pass) -> None:
        if going.due_ms is not None and going.end >= (going.block + 1) * _BLOCK:
            self._dues[going.block] = going.due_ms
        going.due_ms = None

    def _act(self, going: _Pass, found: Found) -> None:
        if self._pass is not going:
            return
        try:
            appended = self._treat(going, found)
            durable = None if appended is None else self._store.when_durable(appended.end, None)
        except SaturnError as error:
            self._failed(error)
        else:
            hear(durable, lambda _: self._ask_all(going), self._failed)

    def _treat(self, going: _Pass, found: Found) -> Appended | None:
        """Write again, or give up, what is due. Raises ServiceUnavailable, and nothing is done."""
        halves, now_ms = self._halves, going.now_ms
        messages: list[Message] = []
        treated: list[Half] = []
        here = dict(zip(found.offsets, found.records, strict=True))
        offset = halves.next_pending(going.at)
        while offset < found.next_offset:
            half = halfmessages.read(here[offset]) if offset in here else None
            if half is None:
                log.error("the half message at %d is damaged, or does not say what it is for: dropped", offset)
                halves.lost(offset)
            elif halves.is_done(offset, half.origin):
                self._ended(half)
            elif self._is_deleted(half):
                halves.finish(offset, half.origin)
            elif (due_ms := half.due_ms(now_ms, self._config.transaction_time_out)) > now_ms:
                going.due_ms = due_ms if going.due_ms is None else min(going.due_ms, due_ms)
            else:
                treated.append(half)
                messages.append(self._next(half))
            offset = halves.next_pending(offset + 1)
        going.at = found.next_offset
        if not messages:
            return None
        appended = self._store.append(messages, urgent=True, again=True)
        halves.move([half.offset for half in treated])
        for half, message, place in zip(treated, messages, appended, strict=True):
            if message.topic == HALF_TOPIC:
                going.checks.append(self._check(half, message, place))
            else:
                self.metrics.change(half.topic, -1)
        return appended[-1]

    def _next(self, half: Half) -> Message:
        checks = half.checks or 0
        if half.checks is None or checks < self._config.transaction_check_max:
            return half.copy(checks + 1)
        log.error(
            "half message %s for %s was asked about %d times: given up, %s keeps it",
            half.properties.get(names.UNIQUE_KEY), half.topic, checks, TRANS_CHECK_MAX_TIME_TOPIC,
        )  # fmt: skip
        self._topics.ensure_given_up()
        return half.given_up()

    def _check(self, half: Half, copy: Message, place: Appended) -> TransactionCheck:
        stored = msgspec.structs.replace(
            half.stored,
            topic=half.topic,
            queue_id=half.queue_id,
            queue_offset=place.queue_offset,
            commit_log_offset=place.commit_log_offset,
            properties=copy.properties,
        )
        return TransactionCheck(
            group=half.properties.get(names.PRODUCER_GROUP, ""),
            broker_name=self._config.broker_name,
            half_offset=place.queue_offset,
            commit_log_offset=place.commit_log_offset,
            message_id=half.properties.get(names.UNIQUE_KEY, ""),
            offset_message_id=record.offset_message_id(self._store.store_host, place.commit_log_offset),
            record=record.encode_stored(stored),
        )

    def _ask_all(self, going: _Pass) -> None:
        checks, going.checks = going.checks, []
        unheard = [check.group for check in checks if not self._ask(check)]
        going.unheard.update(unheard)
        if self._running and any(self._clients.producers(group) for group in unheard):
            self._timer = self._clock.call_at(self._clock.now_ms() + _SLOW_MS, self._step)
        else:
            self._clock.call_soon(self._step)

    def _ask(self, check: TransactionCheck) -> bool:
        """A producer of the group; the next one next time. Whether one can be asked."""
        producers = self._clients.producers(check.group)
        self._turn += 1
        first = self._turn % max(len(producers), 1)
        return any(channel.check_transaction(check) for channel in producers[first:] + producers[:first])

    def _failed(self, error: BaseException) -> None:
        log.error("half messages cannot be looked at now: %s", error)
        self._over()

    def _over(self) -> None:
        """The pass has come to its end."""
        if self._pass is not None and self._pass.unheard:
            groups = sorted(self._pass.unheard)
            log.warning(
                "half messages of %d producer groups are pending, and nobody can be asked: %s",
                len(groups), ", ".join(groups[:_NAMED]),
            )  # fmt: skip
        self._pass = None
        if self._running:
            self._halves.save()
            self._arm()

    # ------------------------------------------------------------------------------------------------ for operators

    def resume(self, message_id: str) -> Reply[None]:
        """Ask again about a half message that was given up, as often as about a new one, or about a pending one."""
        _, position = record.parse_offset_message_id(message_id)
        return chain(self._store.record_at(position), self._resume)

    def _resume(self, data: bytes | None) -> Reply[None]:
        half = halfmessages.read(data) if data is not None else None
        given_up = half is not None and half.stored.topic == TRANS_CHECK_MAX_TIME_TOPIC
        if half is None or not (given_up or half.stored.topic == HALF_TOPIC):
            raise SaturnError("Put message back to RMQ_SYS_TRANS_HALF_TOPIC failed: it is no half message.")
        if given_up:
            half.origin = self._halves.end
        elif self._halves.is_done(half.offset, half.origin):
            raise SaturnError("Put message back to RMQ_SYS_TRANS_HALF_TOPIC failed: it is not pending.")
        (appended,) = self._store.append((half.copy(0),), urgent=True, again=True)
        if given_up:
            self.metrics.change(half.topic, 1)
        else:
            self._halves.move([half.offset])
        return self._store.when_durable(appended.end, None)


class _Pass(msgspec.Struct):
    """A walk over what is pending."""

    #: the next one to look at, and where to stop: what came later waits for the next pass
    at: int
    end: int
    now_ms: int
    #: whose halves it looks at, and when the first of those is due that it left
    block: int = -1
    due_ms: int | None = None
    #: to be sent when the copies are durable
    checks: list[TransactionCheck] = []
    #: groups that cannot be asked
    unheard: set[str] = set()
