"""What can go wrong, one class for each answer on the wire.

`wire.remoting.codes` and `proxy.codes` each hold one table from these classes to their codes. The message of
an error names what was wrong, the limit, and how to fix it: it goes to the client as it is. Anything else that
escapes a handler is a bug of ours: it is logged with its trace and answered as an internal error.
"""

from __future__ import annotations


class SaturnError(Exception):
    """An answer that is not success. The connection survives."""


class ProtocolError(Exception):
    """The peer broke its protocol: the connection cannot go on. The only error that a codec raises."""


class TopicNotFound(SaturnError):
    """The topic does not exist here."""


class IllegalTopic(SaturnError):
    """The name cannot be a topic, or the topic may not be used in this way."""


class GroupNotFound(SaturnError):
    """The consumer group does not exist here."""


class IllegalGroup(SaturnError):
    """The name cannot be a consumer group."""


class NoPermission(SaturnError):
    """The broker, the topic or the group forbids it."""


class IllegalMessage(SaturnError):
    """The message breaks a rule or a limit; see the subclasses for those that gRPC tells apart."""


class BodyTooLarge(IllegalMessage):
    """The body is longer than maxMessageSize."""


class BodyEmpty(IllegalMessage):
    """The body is empty."""


class PropertiesTooLarge(IllegalMessage):
    """The properties are too long or too many."""


class IllegalPropertyKey(IllegalMessage):
    """A property key is reserved or has a control character."""


class IllegalTag(IllegalMessage):
    """The tag is blank, or has a `|` or a control character."""


class IllegalKey(IllegalMessage):
    """A message key is blank or has a control character."""


class IllegalMessageId(IllegalMessage):
    """The message id is blank."""


class IllegalMessageGroup(IllegalMessage):
    """The message group is blank, too long or has a control character."""


class IllegalDeliveryTime(IllegalMessage):
    """The delivery time is too far away."""


class MessageTypeMismatch(IllegalMessage):
    """The topic does not take messages of this type."""


class InvalidParameter(SaturnError):
    """A header field or argument is missing or makes no sense."""


class IllegalOffset(InvalidParameter):
    """There is no such offset."""


class IllegalAttribute(SaturnError):
    """An attribute of a topic or group cannot be changed in this way."""


class IllegalFilter(SaturnError):
    """The filter expression cannot be understood."""


class SubscriptionUnknown(SaturnError):
    """The consumer did not say what it wants of the topic."""


class SubscriptionOutdated(SaturnError):
    """What the consumer's group said that it wants is older than what the consumer means."""


class IllegalInvisibleTime(SaturnError):
    """The invisible time is outside of its limits."""


class IllegalPollingTime(SaturnError):
    """The time left before the deadline is too short for a long poll."""


class InvalidReceiptHandle(SaturnError):
    """The receipt handle is expired, foreign or forged."""


class InvalidTransactionId(SaturnError):
    """No half message is meant, or another than its group and id say."""


class NoSuchMessage(SaturnError):
    """There is no message at this offset."""


class NotFound(SaturnError):
    """The query found nothing."""


class ConsumerNotOnline(SaturnError):
    """No client of the consumer group is connected."""


class ClientUnknown(SaturnError):
    """The client sent no settings yet, or they expired."""


class ClientIdRequired(SaturnError):
    """The request names no client."""


class IllegalOperation(SaturnError):
    """The request is not allowed in this state."""


class NotSupported(SaturnError):
    """This server does not do that (yet)."""


class SystemBusy(SaturnError):
    """A limit on work in progress is reached; the client should wait and try again."""


class TimersDisabled(NotSupported):
    """Messages for an arbitrary time are not taken: timerWheelEnable=false."""


class TimersCongested(SystemBusy):
    """Too many messages are due at the same time (timerCongestNumEachSlot)."""


class ServiceUnavailable(SaturnError):
    """The broker takes no requests of this kind now: it stops, its disk is full or failed."""


class FlushTimeout(SaturnError):
    """The message is in the log, but the disk did not confirm it in time.

    `value` is what the answer would have been (`Store.when_durable`): clients take the message for sent.
    """

    def __init__(self, text: str, value: object = None) -> None:
        super().__init__(text)
        self.value = value


class VersionNotSupported(SaturnError):
    """The client leaves out what it must say here: it is too old, or meant to ask elsewhere."""


class ReplicaTimeout(FlushTimeout):
    """The message is in the log, but no replica confirmed it in time."""


class ReplicaUnavailable(FlushTimeout):
    """The message is in the log, but there is no replica that could confirm it."""


class RequestTimeout(SaturnError):
    """Another process did not answer our request in time."""


class ConnectionLost(SaturnError):
    """Another process cannot be reached, or went away before it answered."""


class Unreachable(ConnectionLost):
    """Another process cannot be reached: it was not even asked."""
