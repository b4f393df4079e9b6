"""Request-reply: the answer of a consumer goes back to the producer that asked."""

from __future__ import annotations

import logging

from saturnmq.broker.clients import ClientTable
from saturnmq.broker.send import Sends
from saturnmq.kernel import properties as names
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import SaturnError, ServiceUnavailable
from saturnmq.kernel.later import Later, Reply, hear
from saturnmq.kernel.ports import SendReceipt, SendRequest
from saturnmq.store.store import Store
from saturnmq.wire.record import offset_message_id

log = logging.getLogger(__name__)


class Replies:
    """Pushes answers to connected producers, and keeps them in the log when storeReplyMessageEnable is on.

    Source: processor/ReplyMessageProcessor.java. That an answer is stored is a convenience for operators: it is not
    waited for, and does not make up for a requester that is gone.
    """

    def __init__(self, store: Store, clock: Clock, clients: ClientTable, sends: Sends, *, stores: bool) -> None:
        self._store, self._clock, self._clients, self._sends, self._stores = store, clock, clients, sends, stores

    def reply(self, request: SendRequest) -> Reply[SendReceipt]:
        """Answers when the requester has it. Fails with ServiceUnavailable when it cannot be reached."""
        message = request.messages[0]
        self._sends.admit(request)
        if message.queue_id < 0:
            message.queue_id = 0
        receipt = SendReceipt(queue_id=message.queue_id, queue_offset=0, message_id="0", commit_log_offset=-1)
        pushed = self._push(request)
        if self._stores:
            try:
                (appended,) = self._store.append((message,))
            except SaturnError as error:
                log.warning("an answer in %s was not stored: %s", message.topic, error)
            else:
                receipt.queue_offset = appended.queue_offset
                receipt.commit_log_offset = appended.commit_log_offset
                receipt.message_id = offset_message_id(self._store.store_host, appended.commit_log_offset)
        answer: Later[SendReceipt] = Later()
        hear(pushed, lambda _: answer.resolve(receipt), answer.fail)
        return answer

    def _push(self, request: SendRequest) -> Reply[None]:
        requester = request.properties.get(names.REPLY_TO_CLIENT)
        if requester is None:
            return _failed(f"reply message properties[{names.REPLY_TO_CLIENT}] is null")
        channel = self._clients.producer(requester)
        if channel is None:
            return _failed(f"push reply message fail, channel of <{requester}> not found.")
        now_ms = self._clock.now_ms()
        pushed = SendRequest(
            producer_group=request.producer_group,
            messages=request.messages,
            properties={**request.properties, names.PUSH_REPLY_TIME: str(now_ms)},
            default_topic=request.default_topic,
            default_queue_nums=request.default_queue_nums,
        )
        return channel.reply_message(pushed, now_ms)


def _failed(text: str) -> Later[None]:
    later: Later[None] = Later()
    later.fail(ServiceUnavailable(text))
    return later
