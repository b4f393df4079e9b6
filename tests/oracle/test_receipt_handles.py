"""Receipt handles through Apache's Proxy: what a client hears of them when the Broker is ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.admin import Admin
from harness.clients import Client, ClientError, ClientProcess, Delivery, Message, SimpleConsumer
from harness.grpc_variants import GRPC_VARIANTS
from harness.programs import built_or_skipped
from harness.servers import APACHES, start_cluster

LEASE_MS = 15_000
WITHIN_S = 60
#: apache/rocketmq/v2/definition.proto
INVALID_RECEIPT_HANDLE, INTERNAL_SERVER_ERROR = 40_009, 50_001


@pytest.fixture(scope="module")
def java(run_home: Path) -> Iterator[ClientProcess]:
    source = GRPC_VARIANTS["java-plaintext"].source
    process = ClientProcess(list(source.toolchain.run), built_or_skipped(source), run_home / "java-handles", {})
    yield process
    process.kill()


def received(consumer: SimpleConsumer, count: int) -> list[Delivery]:
    """Not acknowledged."""
    deliveries: list[Delivery] = []
    deadline = time.monotonic() + WITHIN_S
    while len(deliveries) < count:
        assert time.monotonic() < deadline
        deliveries += consumer.receive(invisible_ms=LEASE_MS)
    return deliveries


def test_through_apaches_proxy(tmp_path: Path, java: ClientProcess) -> None:
    server = start_cluster(tmp_path, proxy=APACHES)
    try:
        admin = Admin(server.namesrv, server.broker)
        topic, group = admin.create_topic(queues=1), admin.create_group()
        client = Client(java, server.grpc, tls=False, settle_s=server.settle_s)
        consumer = client.simple(group, {topic: "*"})
        client.producer(topic).send([Message(topic, b"%d" % number) for number in range(3)])
        begin = time.monotonic()
        done, changed, late = received(consumer, 3)
        consumer.ack([done])
        consumer.ack([done])
        consumer.change_invisible(changed, 60_000)
        consumer.ack([changed])
        with pytest.raises(ClientError) as refused:
            consumer.change_invisible(changed, 60_000)
        assert refused.value.code == INTERNAL_SERVER_ERROR, "Apache's Proxy knows no reason"
        time.sleep(max(0, begin + LEASE_MS / 1000 + 2 - time.monotonic()))
        with pytest.raises(ClientError) as refused:
            consumer.ack([late])
        assert refused.value.code == INVALID_RECEIPT_HANDLE
        [again] = received(consumer, 1)
        assert (again.id, again.attempt) == (late.id, 2)
        consumer.ack([again])
        client.close_all()
        admin.close()
    finally:
        server.stop()
