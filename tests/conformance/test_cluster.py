"""The official gRPC clients through Cluster mode: NameServer, Broker and Proxy as processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from harness.admin import Admin
from harness.clients import Client, ClientProcess
from harness.grpc_variants import GRPC_VARIANTS
from harness.servers import Server, only_saturn, start_cluster
from test_delayed import test_a_message_comes_at_its_time  # noqa: F401
from test_grpc_clients import (  # noqa: F401
    test_changed_invisible_duration_brings_a_message_back,
    test_closed_consumer_is_unregistered,
    test_long_poll_is_answered_by_a_message_that_arrives,
    test_push_consumer_keeps_the_order_of_a_message_group,
    test_push_consumer_receives_what_was_sent,
    test_simple_consumer_receives_what_was_sent,
    test_unknown_topic,
)

pytestmark = only_saturn


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_cluster(tmp_path_factory.mktemp("cluster"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def admin(cluster: Server) -> Iterator[Admin]:
    admin = Admin(cluster.namesrv, cluster.broker)
    yield admin
    admin.close()


@pytest.fixture
def open_client(client_process: Callable[[str], ClientProcess], cluster: Server) -> Iterator[Callable[[str], Client]]:
    clients: list[Client] = []

    def open_one(variant: str) -> Client:
        clients.append(Client(client_process(variant), cluster.grpc, tls=GRPC_VARIANTS[variant].tls))
        return clients[-1]

    yield open_one
    for client in clients:
        client.close_all()
