"""The doors between rooms, in kernel terms: no headers, no channels, no sockets.

`broker.Broker` implements `BrokerPort` and `ClusterPort`; `proxy.cluster` does it over the wire. Every method answers
now or `Later` (see `kernel.later`) and raises or fails with a `kernel.errors.SaturnError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, StrEnum, auto
from typing import Protocol

import msgspec

from saturnmq.kernel.handle import TopicKind
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Reply
from saturnmq.kernel.message import Message
from saturnmq.kernel.subscription import Subscription
from saturnmq.kernel.topic import GroupConfig, MessageQueue, TopicConfig, TopicRoute

# ---------------------------------------------------------------------------------------------------- sending


class SendRequest(msgspec.Struct, gc=False, kw_only=True):
    """One message, or a batch for one queue. A negative queue id lets the broker choose."""

    producer_group: str
    messages: list[Message]
    #: `messages[0].properties`, decoded once by the face that made the request
    properties: dict[str, str]
    #: the template that an unknown topic is created from, and with how many queues
    default_topic: str = ""
    default_queue_nums: int = 8
    #: of a message that a Remoting consumer sends back itself
    max_reconsume_times: int | None = None
    batch: bool = False
    #: a topic that is created for it is a unit's
    unit_mode: bool = False


class SendReceipt(msgspec.Struct, gc=False, kw_only=True):
    """Durable as the broker is configured to make it; the first message of a batch gives the offset."""

    queue_id: int
    queue_offset: int
    #: offset message ids, one per message, comma separated (store host and commit-log offset in hex)
    message_id: str
    commit_log_offset: int
    transaction_id: str | None = None
    recall_handle: str | None = None


class RecallRequest(msgspec.Struct, gc=False, kw_only=True):
    """Take back a message whose time has not come."""

    topic: str
    #: `kernel.handle.RecallHandle` as text
    handle: str
    producer_group: str | None = None
    #: of who asks, packed by `kernel.host.pack`
    born_host: bytes


class Resolution(Enum):
    """What becomes of a half message."""

    COMMIT = auto()
    ROLLBACK = auto()
    UNKNOWN = auto()  # not decided yet: it stays, and is asked about again


class EndTransactionRequest(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Commit a half message or roll it back. Where it stands is in `SendReceipt` and `TransactionCheck`."""

    topic: str
    producer_group: str
    #: its offset in the queue of half messages (tranStateTableOffset)
    half_offset: int
    commit_log_offset: int
    resolution: Resolution
    #: the answer to a check, which may come late
    from_check: bool = False
    #: its unique key, which must be the right one; None: nobody said it
    message_id: str | None = None


class TransactionCheck(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A half message that nobody has ended: what a producer of its group is asked about."""

    group: str
    broker_name: str
    half_offset: int
    commit_log_offset: int
    #: its unique key
    message_id: str
    offset_message_id: str
    #: with the topic and queue that it is for
    record: bytes


# ------------------------------------------------------------------------------------------------- consuming


class PullStatus(Enum):
    FOUND = auto()
    NOT_FOUND = auto()  # nothing there yet
    NO_MATCH = auto()  # something there, nothing that the filter takes: go on at next_offset at once
    OFFSET_MOVED = auto()  # the offset is outside of the queue: go on at next_offset


class PullRequest(msgspec.Struct, gc=False, kw_only=True):
    group: str
    queue: MessageQueue
    offset: int
    max_messages: int
    #: of records; 0: as many as the broker likes to give
    max_bytes: int
    subscription: Subscription
    #: how long to wait for a message when there is none, milliseconds; 0 answers at once
    wait_ms: int = 0
    #: how far the group has come with the queue, which is kept at the same time; negative: it does not say
    commit_offset: int = -1
    #: of a consumer that balances queues itself, which brokers may refuse
    lite: bool = False


class PullResult(msgspec.Struct, gc=False, kw_only=True):
    status: PullStatus
    next_offset: int
    min_offset: int
    max_offset: int
    #: records as they stand in the commit log
    records: list[bytes] = []


class PopRequest(msgspec.Struct, gc=False, kw_only=True):
    group: str
    topic: str
    #: -1: any queue of the topic
    queue_id: int
    max_messages: int
    invisible_ms: int
    #: how long to wait for a message when there is none, milliseconds on the broker's clock; 0 answers at once
    wait_ms: int
    subscription: Subscription
    #: a new group begins at the last message (True) or the first one (False)
    from_latest: bool = True
    fifo: bool = False
    #: repeating a FIFO pop with the same id gives the same messages again, not the next ones
    attempt_id: str | None = None
    #: of the client that pops, for its leases
    client_id: str = ""


class PopStatus(Enum):
    FOUND = auto()
    NOT_FOUND = auto()
    POLLING_FULL = auto()
    #: the wait was over before a message came
    POLLING_TIMEOUT = auto()


class Popped(msgspec.Struct, gc=False):
    """One message that a pop took, and what makes its receipt handle."""

    record: bytes
    topic_kind: TopicKind
    queue_id: int
    queue_offset: int
    commit_log_offset: int
    start_offset: int
    #: deliveries before this one
    reconsume_times: int


class PopResult(msgspec.Struct, gc=False, kw_only=True):
    status: PopStatus
    pop_ms: int = 0
    invisible_ms: int = 0
    revive_queue_id: int = 0
    #: messages that the group has not taken yet, about
    rest: int = 0
    messages: list[Popped] = []


class Delivery(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Which delivery an ack or a change is about: the broker's part of a receipt handle."""

    group: str
    #: the topic as the consumer knows it; `topic_kind` tells whether the message came from a retry topic
    topic: str
    topic_kind: TopicKind
    queue_id: int
    queue_offset: int
    start_offset: int
    pop_ms: int
    invisible_ms: int
    revive_queue_id: int


class InvisibleChanged(msgspec.Struct, gc=False):
    """What the new receipt handle says instead of the old."""

    pop_ms: int
    invisible_ms: int
    revive_queue_id: int


class DeadReason(StrEnum):
    """Why a message is a dead letter: its property DLQ_REASON."""

    MAX_ATTEMPTS = "MAX_ATTEMPTS"  # it failed as often as its group allows
    CONSUMER = "CONSUMER"  # its consumer gave it up


class SendBackRequest(msgspec.Struct, gc=False, kw_only=True):
    """Try this message again later, or bury it (Remoting code 36)."""

    group: str
    commit_log_offset: int
    #: < 0: to the dead letters; 0: the broker chooses by the number of tries; else this level
    delay_level: int
    max_reconsume_times: int | None = None
    origin_message_id: str | None = None
    origin_topic: str | None = None
    #: where the consumer says that it is to be buried
    reason: DeadReason = DeadReason.CONSUMER
    #: the retry topic, where it is created for this, is a unit's
    unit_mode: bool = False


class Notice(msgspec.Struct, frozen=True):
    """What a consumer hears that waits for messages to pop."""

    has_message: bool
    #: too many wait for the queue already
    is_full: bool = False


class Boundary(Enum):
    """Which message a time stands for when several or none have it."""

    LOWER = auto()  # the first one stored at or after the time
    UPPER = auto()  # the last one stored at or before the time


# --------------------------------------------------------------------------------------------------- clients


class ConsumeType(Enum):
    ACTIVELY = "CONSUME_ACTIVELY"
    PASSIVELY = "CONSUME_PASSIVELY"
    POP = "CONSUME_POP"


class MessageModel(Enum):
    CLUSTERING = "CLUSTERING"
    BROADCASTING = "BROADCASTING"


class DirectMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that an operator hands to one consumer, past its queue."""

    group: str
    #: as it stands in the commit log
    record: bytes
    #: as the operator named it
    message_id: str
    broker_name: str
    #: empty where the operator named none
    topic: str
    #: of the topic and of the group, None where the broker does not have them
    topic_sys_flag: int | None = None
    group_sys_flag: int | None = None


class ClientChannel(Protocol):
    """The way back to one connected client. Owner: the face that the client speaks to.

    What asks a client fails with RequestTimeout, ConnectionLost, NotSupported, or with what the client says.
    """

    client_id: str
    language: str
    version: int
    peer: Address

    def consumers_changed(self, group: str) -> None:
        """Members of the group came or went."""
        ...

    def reply_message(self, request: SendRequest, received_ms: int) -> Reply[None]:
        """Hand over the answer to a message that it sent (request-reply). Fails with NotSupported over gRPC."""
        ...

    def reset_offsets(self, group: str, topic: str, timestamp_ms: int, offsets: Mapping[MessageQueue, int]) -> None:
        """An operator sends the group there: go on there with the queues that it has, and commit that."""
        ...

    def positions(self, group: str, topic: str) -> Reply[Mapping[MessageQueue, int]]:
        """Where it is in the queues that it has."""
        ...

    def running_info(self, group: str, *, with_stack: bool) -> Reply[bytes]:
        """What it says of itself, and the stacks of its threads: the JSON of ConsumerRunningInfo, for tools to read."""
        ...

    def consume(self, message: DirectMessage) -> Reply[bytes]:
        """Consume it now. How that went: the JSON of ConsumeMessageDirectlyResult, for tools to read."""
        ...

    def check_transaction(self, check: TransactionCheck) -> bool:
        """Ask what became of a transaction; the client ends it some time. False: it cannot be asked now."""
        ...


class ConsumerMembership(msgspec.Struct, kw_only=True):
    """What one client says of one consumer group in its heart-beat."""

    group: str
    consume_type: ConsumeType
    message_model: MessageModel
    consume_from: str = "CONSUME_FROM_LAST_OFFSET"
    subscriptions: list[Subscription] = []
    unit_mode: bool = False


class GroupMember(msgspec.Struct, frozen=True, kw_only=True):
    """One connected consumer."""

    client_id: str
    #: `host:port`
    address: str
    language: str
    version: int


class GroupMembers(msgspec.Struct, kw_only=True):
    """Who is in a consumer group, and what they said of it."""

    members: list[GroupMember]
    consume_type: ConsumeType
    message_model: MessageModel
    consume_from: str
    #: by topic
    subscriptions: Mapping[str, Subscription]

    def client_ids(self) -> list[str]:
        # a client that came back may still have its old connection
        return list(dict.fromkeys(member.client_id for member in self.members))


class BrokerPort(Protocol):
    """What the Proxy may ask of a Broker."""

    name: str

    @property
    def keeps_leases(self) -> bool: ...

    @property
    def takes_sends(self) -> bool:
        """As far as is known it would take one, and soon."""
        ...

    def send(self, request: SendRequest) -> Reply[SendReceipt]: ...

    def recall(self, request: RecallRequest) -> Reply[str]:
        """Take a message back; answers its id. Whether there is one is not looked at. Raises IllegalOperation."""
        ...

    def end_transaction(self, request: EndTransactionRequest) -> Reply[None]:
        """Answers when it is durable. Raises InvalidTransactionId, IllegalOperation (too late), TopicNotFound."""
        ...

    def pull(self, request: PullRequest) -> Reply[PullResult]: ...

    def pop(self, request: PopRequest) -> Reply[PopResult]: ...

    def ack(self, delivery: Delivery) -> Reply[None]:
        """Done with it. Raises InvalidReceiptHandle, NoSuchMessage."""
        ...

    def change_invisible(self, delivery: Delivery, invisible_ms: int) -> Reply[InvisibleChanged]:
        """Hide it for `invisible_ms` from now on. The old handle is no longer good."""
        ...

    def renew(self, delivery: Delivery, invisible_ms: int, client_id: str = "") -> Reply[InvisibleChanged | None]:
        """Hide it for `invisible_ms` from now on. The handle that the client holds stays good; a broker that cannot do
        that (Apache's) answers what another one says instead.

        `client_id` is of the push consumer that holds it: when nobody renews it any more and that consumer lives, a
        broker that `keeps_leases` goes on by itself.
        """
        ...

    def notify(self, request: PopRequest) -> Reply[Notice]:
        """Tell when this pop would find something; `wait_ms` later at the latest. Nothing is taken."""
        ...

    def send_back(self, request: SendBackRequest) -> Reply[None]: ...

    def committed(self, group: str, queue: MessageQueue, *, zero_if_new: bool = True) -> Reply[int]:
        """Where the group goes on in the queue. One that never said so begins at 0, if `zero_if_new` and the first
        message is a recent one, else where it likes: raises NotFound."""
        ...

    def commit(self, group: str, queue: MessageQueue, offset: int) -> Reply[bool]:
        """The group goes on there. False: it does not, an operator has just sent it elsewhere. Raises GroupNotFound,
        TopicNotFound, InvalidParameter."""
        ...

    def min_offset(self, queue: MessageQueue) -> Reply[int]: ...

    def max_offset(self, queue: MessageQueue) -> Reply[int]:
        """That of the next message."""
        ...

    def offset_by_time(self, queue: MessageQueue, timestamp_ms: int, boundary: Boundary) -> Reply[int]: ...

    def lock(self, group: str, queues: Sequence[MessageQueue], client_id: str) -> Reply[list[MessageQueue]]:
        """Those of the queues that the client may consume in order now, nobody else of its group."""
        ...

    def unlock(self, group: str, queues: Sequence[MessageQueue], client_id: str) -> Reply[None]: ...


class ClusterPort(Protocol):
    """What the Proxy may ask where it does not matter which Broker answers, and tell all of them."""

    def topic_config(self, topic: str) -> Reply[TopicConfig | None]: ...

    def group_config(self, group: str) -> Reply[GroupConfig | None]:
        """The group's settings; an unknown group is created first when autoCreateSubscriptionGroup is on."""
        ...

    def consumer_joined(self, channel: ClientChannel, membership: ConsumerMembership) -> None:
        """Register or keep alive; expires 120 s after the last call."""
        ...

    def producer_joined(self, channel: ClientChannel, group: str) -> None: ...

    def client_left(self, channel: ClientChannel, group: str | None = None) -> None:
        """Unregister the channel from one group, or from everything."""
        ...

    def members(self, group: str) -> Reply[GroupMembers | None]:
        """None: nobody is connected."""
        ...


class RoutePort(Protocol):
    """What the Proxy may ask of a NameServer."""

    def route(self, topic: str) -> Reply[TopicRoute]:
        """Raises TopicNotFound."""
        ...
