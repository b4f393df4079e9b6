"""What operators do, over the wire, like any client: with NameServers and Brokers of SaturnMQ or Apache, whoever of the
consumers is online or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from saturnmq.admin.deadletters import DeadLetter
from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import ConnectionLost, ProtocolError, RequestTimeout, SaturnError
from saturnmq.kernel.hashing import jump_hash
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Reply
from saturnmq.kernel.subscription import tag_hash
from saturnmq.kernel.topic import READ, WRITE, MessageQueue, TopicRoute, dlq_topic
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.net.tasks import wait_reply
from saturnmq.wire import record
from saturnmq.wire.remoting import headers, json
from saturnmq.wire.remoting.bodies import TopicList, decode
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

#: group that tools read with; every broker has it
_TOOLS = "TOOLS_CONSUMER"
#: PullSysFlag: the request says what is wanted
_SUBSCRIPTION = 4
_PAGE = 32
#: for an index that reads the log after a crash: 10 s
_INDEX_WAITS, _INDEX_WAIT_S = 40, 0.25
_LONG_MAX = (1 << 63) - 1
#: the message is in the log, only not as safe yet as it should be
_STORED = (
    ResponseCode.FLUSH_DISK_TIMEOUT,
    ResponseCode.FLUSH_SLAVE_TIMEOUT,
    ResponseCode.SLAVE_NOT_AVAILABLE,
)


class Refused(SaturnError):
    """A server answered with another code than SUCCESS."""

    def __init__(self, address: Address, code: int, remark: str) -> None:
        super().__init__(f"{address} answered {code}: {remark}")
        self.code = code


class NotIndexed(SaturnError):
    """The broker does not find a message by its id, and so cannot tell what became of it."""


class Operations:
    """The client belongs to the caller. Methods raise SaturnError, whose words are for people."""

    def __init__(self, client: RemotingClient, name_servers: Sequence[Address], timeout_ms: int = 10_000) -> None:
        self._client, self._name_servers, self._timeout_ms = client, name_servers, timeout_ms

    # ------------------------------------------------------------------------------------------------- topics

    async def route(self, topic: str) -> TopicRoute | None:
        """None: no broker has the topic."""
        fields = {"topic": topic, "acceptStandardJsonOnly": "true"}
        answer = await self._ask_names(RequestCode.GET_ROUTEINFO_BY_TOPIC, fields)
        if answer.code == ResponseCode.TOPIC_NOT_EXIST:
            return None
        return decode(TopicRoute, answer.body)

    async def queues(self, topic: str, perm: int = READ) -> dict[MessageQueue, Address]:
        """Those that may be read, or written, with the master that has them, in the order of brokers and numbers."""
        route = await self.route(topic)
        if route is None:
            return {}
        masters = {one.broker_name: one.broker_addrs[0] for one in route.broker_datas if 0 in one.broker_addrs}
        return {
            MessageQueue(topic, data.broker_name, queue_id): Address.parse(masters[data.broker_name])
            for data in sorted(route.queue_datas, key=lambda data: data.broker_name)
            if data.broker_name in masters and data.perm & perm
            for queue_id in range(data.read_queue_nums if perm == READ else data.write_queue_nums)
        }

    # ------------------------------------------------------------------------------------------- dead letters

    async def dead_letters(self, group: str, from_ms: int = 0, until_ms: int = _LONG_MAX) -> AsyncIterator[DeadLetter]:
        """Those that died in [from_ms, until_ms), of each broker in the order of their deaths; no more than there are
        at the beginning."""
        topic = dlq_topic(group)
        queues = await self.queues(topic)
        if not queues and await self.route(topic) is not None:
            raise SaturnError(
                f"the topic {topic} has no queue to read: no master of it is known, or its perm forbids it (brokers of "
                f"before 5.0 made it so): `mqadmin updateTopicPerm -t {topic} -p 6`"
            )
        for queue, broker in queues.items():
            place = {"topic": queue.topic, "queueId": str(queue.queue_id)}
            end = int((await self._ask(broker, RequestCode.GET_MAX_OFFSET, place)).fields["offset"])
            search = {**place, "timestamp": str(from_ms)}
            first = await self._ask(broker, RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, search)
            offset = int(first.fields["offset"])
            while offset < end:
                offset, records = await self._pull(broker, queue, offset)
                for data in records:
                    letter = DeadLetter.of(group, queue.broker_name, broker, data)
                    if letter.stored.stored_ms >= until_ms or letter.stored.queue_offset >= end:
                        offset = end
                        break
                    if letter.stored.stored_ms >= from_ms:  # Apache's gives the last one for a time after it
                        yield letter

    async def _pull(self, broker: Address, queue: MessageQueue, offset: int) -> tuple[int, list[bytes]]:
        """Where to go on, and the records from the offset on."""
        header = headers.PullHeader(
            consumer_group=_TOOLS,
            topic=queue.topic,
            queue_id=queue.queue_id,
            queue_offset=offset,
            max_msg_nums=_PAGE,
            sys_flag=_SUBSCRIPTION,
            commit_offset=0,
            suspend_timeout_millis=0,
            sub_version=0,
            subscription="*",
            expression_type="TAG",
        )
        more = (ResponseCode.PULL_NOT_FOUND, ResponseCode.PULL_RETRY_IMMEDIATELY, ResponseCode.PULL_OFFSET_MOVED)
        answer = await self._ask(broker, RequestCode.PULL_MESSAGE, _fields(header), accept=more)
        following = int(answer.fields["nextBeginOffset"])
        if answer.code == ResponseCode.SUCCESS:
            return following, record.split(answer.body)
        return (following if following > offset else _LONG_MAX), []

    async def find_dead_letters(self, group: str, message_id: str) -> list[DeadLetter]:
        """The message's letters, the newest one of each broker, by its id or by the offset message id of a letter."""
        topic, found = dlq_topic(group), []
        for broker_name, broker in (await self._brokers_of(topic)).items():
            records = await self._records(broker, topic, message_id) or await self._record_at(broker, message_id)
            letters = [DeadLetter.of(group, broker_name, broker, data) for data in records]
            letters = [letter for letter in letters if letter.stored.topic == topic]
            if letters:
                found.append(max(letters, key=lambda letter: letter.stored.commit_log_offset))
        return found

    async def _record_at(self, broker: Address, place: str) -> list[bytes]:
        """The one with this offset message id."""
        try:
            _, offset = record.parse_offset_message_id(place)
        except ProtocolError:
            return []
        fields = {"offset": str(offset)}
        answer = await self._ask(broker, RequestCode.VIEW_MESSAGE_BY_ID, fields, accept=(ResponseCode.SYSTEM_ERROR,))
        if answer.code != ResponseCode.SUCCESS:
            return []
        stored = record.decode(answer.body)
        found = record.offset_message_id(stored.store_host, stored.commit_log_offset)
        return [answer.body] if found == place.upper() else []

    async def is_resent(self, letter: DeadLetter, *more_topics: str) -> bool:
        """Whether the message was sent again since the letter: there is a message that says so. Raises NotIndexed."""
        broker, topics = letter.broker, dict.fromkeys([letter.topic, *letter.retry_topics, *more_topics])
        found = await asyncio.gather(*(self._records(broker, topic, letter.message_id) for topic in topics if topic))
        if any(letter.is_resent_as(data) for records in found for data in records):
            return True
        letters = await self._records(broker, dlq_topic(letter.group), letter.message_id)
        if names.UNIQUE_KEY in letter.properties and not letters:
            raise NotIndexed(
                f"broker {letter.broker_name} does not find message {letter.message_id} by its id, so it cannot tell "
                "whether it was sent again: is its index off (messageIndexEnable)? --again sends it without asking"
            )
        return False

    async def resend(self, letter: DeadLetter, to: str, *, again: bool = False) -> bool:
        """Send the message again, to a topic of the letter's broker. False: that was done before, and not now. The
        message and its mark are one record: there is no moment in which one is there without the other."""
        if not again and await self.is_resent(letter, to):
            return False
        header = headers.SendHeaderV2(
            producer_group=_TOOLS,
            topic=to,
            default_topic="",
            default_topic_queue_nums=1,
            queue_id=await self._queue_id(letter, to),
            sys_flag=letter.resent_sys_flag,
            born_timestamp=letter.stored.born_ms,
            flag=letter.stored.flag,
            properties=names.encode(letter.resent_properties(to)).decode(),
            reconsume_times=0,
            unit_mode=False,
            batch=False,
        )
        code, fields, body = RequestCode.SEND_MESSAGE_V2, _fields(header), letter.stored.body
        try:
            await self._ask(letter.broker, code, fields, body, accept=_STORED)
        except Refused as error:
            if error.code != ResponseCode.TOPIC_NOT_EXIST:
                raise
            raise SaturnError(
                f"topic {to} is not on broker {letter.broker_name}, which has the letter: make it there, or name "
                "another one (--to)"
            ) from None
        except (RequestTimeout, ConnectionLost) as error:
            raise SaturnError(
                f"{error}; whether message {letter.message_id} was sent again is not known. Do the same again: what "
                "was sent is left out"
            ) from None
        return True

    async def _queue_id(self, letter: DeadLetter, topic: str) -> int:
        """A message group keeps the queue that it had, when that is still on this broker; others go anywhere."""
        message_group = letter.properties.get(names.SHARDING_KEY)
        if not message_group or topic != letter.topic:
            return -1
        queues = list(await self.queues(topic, WRITE))
        for possible in (queues, [queue for queue in queues if queue.broker_name == letter.broker_name]):
            if possible:
                queue = possible[jump_hash(tag_hash(message_group), len(possible))]
                if queue.broker_name == letter.broker_name:
                    return queue.queue_id
        return -1

    async def retry_topic_for(self, letter: DeadLetter) -> str:
        """Where the letter's group alone gets the message. Raises SaturnError when that cannot be told."""
        if letter.pop_retry_topic is not None:
            return letter.pop_retry_topic
        answer = await self._ask(letter.broker, RequestCode.QUERY_TOPICS_BY_CONSUMER, {"group": letter.group})
        read = decode(TopicList, answer.body).topic_list
        found = [topic for topic in letter.retry_topics if topic in read]
        if len(found) != 1:
            raise SaturnError(
                f"group {letter.group} has read {' and '.join(found) or 'no retry topic'}: whether it pulls or pops "
                f"cannot be told (FIFO groups read none). Use --to topic, or name one of: "
                + ", ".join(letter.retry_topics)
            )
        return found[0]

    # ------------------------------------------------------------------------------------------------ offsets

    async def reset(
        self, group: str, topic: str, timestamp_ms: int, *, queue: MessageQueue | None = None, offset: int = -1
    ) -> dict[MessageQueue, int]:
        """Send the group to a time (0: what is there first; -1: skip all), or to the offset of one queue. Answers where
        it goes on; consumers that are online follow at once."""
        brokers = await self._brokers_of(topic)
        if queue is not None:
            brokers = {name: address for name, address in brokers.items() if name == queue.broker_name}
        if not brokers:
            raise SaturnError(
                f"no broker has the topic {topic}" + (f" and the name {queue.broker_name}" if queue else "")
            )
        header = headers.ResetHeader(
            topic=topic,
            group=group,
            timestamp=timestamp_ms,
            is_force=True,
            queue_id=-1 if queue is None else queue.queue_id,
            offset=offset,
        )
        reset: dict[MessageQueue, int] = {}
        for address in brokers.values():
            answer = await self._ask(address, RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, _fields(header))
            reset |= json.parse(answer.body)["offsetTable"]
        return reset

    # --------------------------------------------------------------------------------------------------- wire

    async def _brokers_of(self, topic: str) -> dict[str, Address]:
        """Masters with queues of the topic, by name."""
        return {queue.broker_name: address for queue, address in (await self.queues(topic)).items()}

    async def _records(self, broker: Address, topic: str, message_id: str) -> list[bytes]:
        """Of the topic, with this message id. Waits for an index that is behind the log; Apache's broker does that when
        it starts. Raises NotIndexed."""
        header = headers.QueryHeader(
            topic=topic,
            key=message_id,
            max_num=_PAGE,
            begin_timestamp=0,
            end_timestamp=_LONG_MAX,
            unique_key_query="true",
        )
        fields = _fields(header)
        for _ in range(_INDEX_WAITS):
            answer = await self._ask(broker, RequestCode.QUERY_MESSAGE, fields, accept=(ResponseCode.QUERY_NOT_FOUND,))
            if "indexBehind" not in answer.fields:
                return record.split(answer.body) if answer.code == ResponseCode.SUCCESS else []
            await asyncio.sleep(_INDEX_WAIT_S)
        raise NotIndexed(f"the index of broker {broker} is behind its log, as after a crash: wait, or use --again")

    async def _ask_names(self, code: int, fields: Mapping[str, str]) -> Command:
        """The first NameServer that answers."""
        lost: SaturnError | None = None
        for address in self._name_servers:
            try:
                return await self._ask(address, code, fields, accept=(ResponseCode.TOPIC_NOT_EXIST,))
            except (ConnectionLost, RequestTimeout) as error:
                lost = error
        raise SaturnError(f"no NameServer answers: {lost}. Name one that runs with -n HOST:PORT (or $NAMESRV_ADDR)")

    async def _ask(
        self,
        address: Address,
        code: int,
        fields: Mapping[str, str],
        body: bytes = b"",
        accept: Sequence[int] = (),
    ) -> Command:
        """Raises Refused, ConnectionLost, RequestTimeout."""
        answered: Reply[Command] = self._client.request(address, code, fields, body, self._timeout_ms)
        answer = await wait_reply(answered)
        if answer.code != ResponseCode.SUCCESS and answer.code not in accept:
            raise Refused(address, answer.code, answer.remark or "")
        return answer


def _fields(header: Any) -> dict[str, str]:
    """A header as it stands on the wire."""
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in msgspec.to_builtins(header).items()
        if value is not None
    }
