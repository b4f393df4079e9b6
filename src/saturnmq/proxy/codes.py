"""What went wrong, in the words of the interface: the code that stands in an answer's status."""

from __future__ import annotations

from collections.abc import Mapping

from saturnmq.kernel import errors
from saturnmq.kernel.errors import SaturnError
from saturnmq.wire.proto import rocketmq_pb2 as pb

#: the one place where errors become codes; a class that is not here has the code of the class above it
CODES: Mapping[type[SaturnError], pb.Code] = {
    SaturnError: pb.INTERNAL_SERVER_ERROR,
    errors.TopicNotFound: pb.TOPIC_NOT_FOUND,
    errors.IllegalTopic: pb.ILLEGAL_TOPIC,
    errors.GroupNotFound: pb.CONSUMER_GROUP_NOT_FOUND,
    errors.IllegalGroup: pb.ILLEGAL_CONSUMER_GROUP,
    errors.NoPermission: pb.FORBIDDEN,
    errors.IllegalMessage: pb.MESSAGE_CORRUPTED,
    errors.BodyTooLarge: pb.MESSAGE_BODY_TOO_LARGE,
    errors.BodyEmpty: pb.MESSAGE_BODY_EMPTY,
    errors.PropertiesTooLarge: pb.MESSAGE_PROPERTIES_TOO_LARGE,
    errors.IllegalPropertyKey: pb.ILLEGAL_MESSAGE_PROPERTY_KEY,
    errors.IllegalTag: pb.ILLEGAL_MESSAGE_TAG,
    errors.IllegalKey: pb.ILLEGAL_MESSAGE_KEY,
    errors.IllegalMessageId: pb.ILLEGAL_MESSAGE_ID,
    errors.IllegalMessageGroup: pb.ILLEGAL_MESSAGE_GROUP,
    errors.IllegalDeliveryTime: pb.ILLEGAL_DELIVERY_TIME,
    errors.MessageTypeMismatch: pb.MESSAGE_PROPERTY_CONFLICT_WITH_TYPE,
    errors.InvalidParameter: pb.BAD_REQUEST,
    errors.IllegalOffset: pb.ILLEGAL_OFFSET,
    errors.IllegalAttribute: pb.BAD_REQUEST,
    errors.IllegalFilter: pb.ILLEGAL_FILTER_EXPRESSION,
    errors.SubscriptionUnknown: pb.BAD_REQUEST,
    errors.SubscriptionOutdated: pb.BAD_REQUEST,
    errors.IllegalInvisibleTime: pb.ILLEGAL_INVISIBLE_TIME,
    errors.IllegalPollingTime: pb.ILLEGAL_POLLING_TIME,
    errors.InvalidReceiptHandle: pb.INVALID_RECEIPT_HANDLE,
    errors.InvalidTransactionId: pb.INVALID_TRANSACTION_ID,
    # who settles a message that is gone repeats it for ever (Java, Go), except after this code
    errors.NoSuchMessage: pb.INVALID_RECEIPT_HANDLE,
    errors.NotFound: pb.NOT_FOUND,
    errors.ConsumerNotOnline: pb.NOT_FOUND,
    errors.ClientUnknown: pb.UNRECOGNIZED_CLIENT_TYPE,
    errors.ClientIdRequired: pb.CLIENT_ID_REQUIRED,
    errors.IllegalOperation: pb.PRECONDITION_FAILED,
    errors.NotSupported: pb.NOT_IMPLEMENTED,
    errors.VersionNotSupported: pb.VERSION_UNSUPPORTED,
    errors.TimersDisabled: pb.UNSUPPORTED,
    errors.SystemBusy: pb.TOO_MANY_REQUESTS,
    errors.TimersCongested: pb.TOO_MANY_REQUESTS,
    errors.ServiceUnavailable: pb.INTERNAL_SERVER_ERROR,
    errors.FlushTimeout: pb.MASTER_PERSISTENCE_TIMEOUT,
    errors.ReplicaTimeout: pb.SLAVE_PERSISTENCE_TIMEOUT,
    errors.ReplicaUnavailable: pb.HA_NOT_AVAILABLE,
    errors.RequestTimeout: pb.PROXY_TIMEOUT,
    errors.ConnectionLost: pb.PROXY_TIMEOUT,
    errors.Unreachable: pb.PROXY_TIMEOUT,
}

OK = pb.Status(code=pb.OK, message="OK")


def code_of(error: SaturnError) -> pb.Code:
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def status_of(error: SaturnError) -> pb.Status:
    return pb.Status(code=code_of(error), message=str(error) or (type(error).__doc__ or ""))
