"""What the server asks a gRPC client, over the telemetry stream that the client opened.

Source: proxy/grpc/v2/channel/GrpcClientChannel.java, proxy/grpc/v2/client/ClientActivity.java.
"""

from __future__ import annotations

from functools import partial
from itertools import count

from saturnmq.kernel import properties as props
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import ConnectionLost, RequestTimeout, SaturnError
from saturnmq.kernel.handle import TransactionHandle
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import TransactionCheck
from saturnmq.net.grpc_server import Call
from saturnmq.proxy.messages import to_client
from saturnmq.wire import record as records
from saturnmq.wire.proto import rocketmq_pb2 as pb

#: how long a client may take to answer (grpcProxyRelayRequestTimeoutInSeconds)
TIMEOUT_MS = 5_000

#: how a client that consumed a message tells what became of it, and what Apache's tools call that
_RESULTS = {
    pb.OK: "CR_SUCCESS",
    pb.FAILED_TO_CONSUME_MESSAGE: "CR_LATER",
    pb.MESSAGE_CORRUPTED: "CR_RETURN_NULL",
}


class Commands:
    """One telemetry stream: a `proxy.sessions.Stream`. Owner of what was asked over it and is not answered."""

    def __init__(self, call: Call, clock: Clock) -> None:
        self._call, self._clock = call, clock
        self._nonces = count(1)
        self._asked: dict[str, tuple[Later[pb.TelemetryCommand], Timer]] = {}

    @property
    def open(self) -> bool:
        return self._call.open

    @property
    def behind(self) -> bool:
        return not self._call.writable

    def stacks(self) -> Later[str]:
        nonce = self._nonce()
        command = pb.PrintThreadStackTraceCommand(nonce=nonce)
        return self._ask(nonce, pb.TelemetryCommand(print_thread_stack_trace_command=command)).map(_stacks)

    def verify(self, record: bytes) -> Later[str]:
        nonce = self._nonce()
        command = pb.VerifyMessageCommand(nonce=nonce, message=_message(record))
        return self._ask(nonce, pb.TelemetryCommand(verify_message_command=command)).map(_result)

    def recover(self, check: TransactionCheck) -> None:
        handle = TransactionHandle(
            broker_name=check.broker_name,
            half_offset=check.half_offset,
            commit_log_offset=check.commit_log_offset,
            message_id=check.message_id,
        )
        command = pb.RecoverOrphanedTransactionCommand(message=_message(check.record), transaction_id=handle.encode())
        self._call.send(pb.TelemetryCommand(recover_orphaned_transaction_command=command).SerializeToString())

    def answered(self, command: pb.TelemetryCommand) -> None:
        """What the client says other than its settings; it repeats the nonce of the question."""
        kind = command.WhichOneof("command")
        nonce = getattr(getattr(command, kind), "nonce", "") if kind else ""
        asked = self._asked.pop(nonce, None)
        if asked is not None:  # else it came after its time-out
            later, timer = asked
            timer.cancel()
            later.resolve(command)

    def close(self) -> None:
        """The stream has ended."""
        asked, self._asked = self._asked, {}
        for later, timer in asked.values():
            timer.cancel()
            later.fail(ConnectionLost("the client closed its telemetry stream before it answered"))

    def _nonce(self) -> str:
        return str(next(self._nonces))

    def _ask(self, nonce: str, command: pb.TelemetryCommand) -> Later[pb.TelemetryCommand]:
        later: Later[pb.TelemetryCommand] = Later(partial(self._forget, nonce))
        timer = self._clock.call_at(self._clock.now_ms() + TIMEOUT_MS, partial(self._timed_out, nonce))
        self._asked[nonce] = later, timer
        self._call.send(command.SerializeToString())
        return later

    def _forget(self, nonce: str) -> None:
        _, timer = self._asked.pop(nonce)
        timer.cancel()

    def _timed_out(self, nonce: str) -> None:
        later, _ = self._asked.pop(nonce)
        later.fail(RequestTimeout(f"the client did not answer over its telemetry stream within {TIMEOUT_MS} ms"))


def _message(record: bytes) -> pb.Message:
    stored = records.decode(record)
    received = to_client(stored, props.decode(stored.properties), "", stored.reconsume_times, stored.topic)
    return pb.ReceiveMessageResponse.FromString(received).message


def _stacks(answer: pb.TelemetryCommand) -> str:
    # clients that succeed may leave the status out
    if answer.status.code not in (pb.OK, pb.CODE_UNSPECIFIED):
        raise SaturnError(f"the client has no stack traces: {answer.status.message}")
    return answer.thread_stack_trace.thread_stack_trace


def _result(answer: pb.TelemetryCommand) -> str:
    if answer.WhichOneof("command") != "verify_message_result" or answer.status.code not in _RESULTS:
        code, message = answer.status.code, answer.status.message
        raise SaturnError(f"the client did not consume the message: {message or pb.Code.Name(code)}")
    return _RESULTS[answer.status.code]
