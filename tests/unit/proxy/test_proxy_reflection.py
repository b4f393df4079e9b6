"""gRPC reflection, asked as grpcurl asks."""

from __future__ import annotations

from typing import cast

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from proxy_fakes import FakeCall, Grpc

from saturnmq.net.grpc_server import Call, GrpcError, GrpcStatus
from saturnmq.wire.proto import reflection_v1_pb2 as pb

VERSIONS = ["v1", "v1alpha"]


def open_stream(version: str) -> FakeCall:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    call = FakeCall({})
    Grpc().table[path.encode()].handler(cast("Call", call))
    return call


def ask(call: FakeCall, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
    assert call.on_message is not None
    call.on_message(request.SerializeToString())
    response = pb.ServerReflectionResponse.FromString(call.out[-1])
    assert response.original_request == request
    return response


@pytest.mark.parametrize("version", VERSIONS)
def test_the_list(version: str) -> None:
    response = ask(open_stream(version), pb.ServerReflectionRequest(host="h", list_services="*"))
    assert response.valid_host == "h"
    assert [service.name for service in response.list_services_response.service] == [
        "apache.rocketmq.v2.MessagingService",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_service_can_be_rebuilt_from_the_answer(version: str) -> None:
    call = open_stream(version)
    for service in ("apache.rocketmq.v2.MessagingService", f"grpc.reflection.{version}.ServerReflection"):
        response = ask(call, pb.ServerReflectionRequest(file_containing_symbol=service))
        pool = DescriptorPool()
        files = [
            FileDescriptorProto.FromString(data) for data in response.file_descriptor_response.file_descriptor_proto
        ]
        for file in reversed(files):  # what is imported comes after what imports it
            pool.Add(file)
        assert pool.FindServiceByName(service).methods
    assert len(call.out) == 2


def test_other_questions() -> None:
    call = open_stream("v1")
    by_name = ask(call, pb.ServerReflectionRequest(file_by_filename="rocketmq.proto"))
    assert len(by_name.file_descriptor_response.file_descriptor_proto) == 3, "with Timestamp and Duration"
    of_method = ask(
        call,
        pb.ServerReflectionRequest(file_containing_symbol="apache.rocketmq.v2.MessagingService.SendMessage"),
    )
    assert of_method.file_descriptor_response == by_name.file_descriptor_response
    extensions = ask(call, pb.ServerReflectionRequest(all_extension_numbers_of_type="apache.rocketmq.v2.Message"))
    assert extensions.all_extension_numbers_response == pb.ExtensionNumberResponse(
        base_type_name="apache.rocketmq.v2.Message"
    )


@pytest.mark.parametrize(
    "request_",
    [
        pb.ServerReflectionRequest(file_by_filename="nothing.proto"),
        pb.ServerReflectionRequest(file_containing_symbol="no.such.Service"),
        pb.ServerReflectionRequest(all_extension_numbers_of_type="no.such.Message"),
        pb.ServerReflectionRequest(file_containing_extension=pb.ExtensionRequest(containing_type="x")),
        pb.ServerReflectionRequest(),
    ],
)
def test_what_is_not_there(request_: pb.ServerReflectionRequest) -> None:
    call = open_stream("v1")
    response = ask(call, request_)
    assert response.error_response.error_code == GrpcStatus.NOT_FOUND
    assert response.error_response.error_message
    assert call.open


def test_the_end() -> None:
    call = open_stream("v1")
    assert call.on_message is not None
    with pytest.raises(GrpcError):
        call.on_message(b"\xff")
    assert call.on_half_close is not None
    call.on_half_close()
    assert call.ended == (GrpcStatus.OK, "")
