"""gRPC server reflection: grpcurl and its like ask what the server speaks, and get it from the descriptor pool.

v1 and v1alpha differ in their package name only, so one handler speaks both.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError

from saturnmq.net.grpc_server import Call, Kind, Method
from saturnmq.wire.grpc import GrpcError, GrpcStatus
from saturnmq.wire.proto import POOL
from saturnmq.wire.proto import reflection_v1_pb2 as pb

REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def methods(services: Sequence[str]) -> dict[bytes, Method]:
    """Reflection of these services and of itself, for the table of `net.grpc_server.GrpcServer`."""
    names = sorted({*services, *REFLECTION})

    def reflect(call: Call) -> None:
        def answer(data: bytes) -> None:
            try:
                request = pb.ServerReflectionRequest.FromString(data)
            except DecodeError as error:
                raise GrpcError(GrpcStatus.INVALID_ARGUMENT, f"not a ServerReflectionRequest: {error}") from None
            response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
            _answer(request, response, names)
            call.send(response.SerializeToString())

        call.on_message = answer
        call.on_half_close = call.finish

    return {f"/{service}/ServerReflectionInfo".encode(): Method(Kind.BIDI, reflect) for service in REFLECTION}


def _answer(request: pb.ServerReflectionRequest, response: pb.ServerReflectionResponse, services: list[str]) -> None:
    question = request.WhichOneof("message_request")
    try:
        if question == "list_services":
            response.list_services_response.service.extend(pb.ServiceResponse(name=name) for name in services)
        elif question == "file_by_filename":
            _add_files(response, POOL.FindFileByName(request.file_by_filename))
        elif question == "file_containing_symbol":
            _add_files(response, _file_of(request.file_containing_symbol))
        elif question == "all_extension_numbers_of_type":
            # a proto3 interface has no extensions
            descriptor = POOL.FindMessageTypeByName(request.all_extension_numbers_of_type)
            response.all_extension_numbers_response.base_type_name = descriptor.full_name
        else:
            raise KeyError(f"nothing is known of {question or 'an empty question'}")
    except KeyError as error:
        response.error_response.error_code = GrpcStatus.NOT_FOUND
        response.error_response.error_message = str(error.args[0])


def _file_of(symbol: str) -> FileDescriptor:
    """Raises KeyError. The pool knows services, but not their methods by name."""
    service, _, method = symbol.rpartition(".")
    try:
        return POOL.FindFileContainingSymbol(symbol)
    except KeyError:
        if method in POOL.FindServiceByName(service).methods_by_name:
            return POOL.FindFileContainingSymbol(service)
        raise


def _add_files(response: pb.ServerReflectionResponse, file: FileDescriptor) -> None:
    """A file and what it imports, each once."""
    files: dict[str, bytes] = {}
    waiting = [file]
    while waiting:
        one = waiting.pop()
        if one.name not in files:
            files[one.name] = one.serialized_pb
            waiting.extend(one.dependencies)
    response.file_descriptor_response.file_descriptor_proto.extend(files.values())
