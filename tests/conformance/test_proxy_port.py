"""The Proxy's Remoting port: what Remoting clients do elsewhere, and the gRPC clients, through the one port."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from harness.admin import Admin
from harness.clients import Client, ClientError
from harness.exchange import send_and_receive
from harness.remoting import RemotingClient, RemotingMessage, RemotingProcess
from harness.servers import Server, only_saturn
from test_grpc_clients import ALL_VARIANTS
from test_remoting_pop_mode import modes, popping, test_a_popping_consumer_gets_everything_once, topic  # noqa: F401
from test_remoting_pull import test_assign_and_seek, test_subscribe_and_poll  # noqa: F401
from test_remoting_push import (  # noqa: F401
    test_a_waiting_consumer_gets_a_message_at_once,
    test_broadcasting_gives_everything_to_everyone,
    test_orderly_consumers_do_not_share_a_queue,
    test_orderly_keeps_the_order_of_each_queue,
    test_tags_are_filtered,
    test_what_failed_comes_again,
)
from test_remoting_request import test_an_answer_comes_back  # noqa: F401
from test_remoting_send import test_every_way_of_sending, test_offsets_by_bound_and_by_time  # noqa: F401
from test_transaction_clients import (  # noqa: F401
    test_a_remoting_producer_is_asked,
    test_remoting_committed_and_rolled_back,
)

#: Apache's serves Remoting in Cluster mode only, see tests/oracle/test_proxies_by_remoting.py
pytestmark = only_saturn


@pytest.fixture
def remoting(
    remoting_language: str, remoting_process: Callable[[str], RemotingProcess], server: Server
) -> Iterator[RemotingClient]:
    """Each Remoting client in turn, which knows this port alone."""
    client = RemotingClient(remoting_process(remoting_language), server.proxy_remoting)
    yield client
    client.close_all()


@pytest.fixture
def java_remoting(remoting_process: Callable[[str], RemotingProcess], server: Server) -> Iterator[RemotingClient]:
    client = RemotingClient(remoting_process("java"), server.proxy_remoting)
    yield client
    client.close_all()


@pytest.mark.clients(*ALL_VARIANTS)
def test_grpc_clients_at_the_remoting_port(client: Client, server: Server, admin: Admin) -> None:
    client.endpoints = server.proxy_remoting
    name, group = admin.create_topic(), admin.create_group()
    send_and_receive(client.producer(name), client.push(group, {name: "*"}), name)


def test_a_topic_takes_messages_of_its_type(java_remoting: RemotingClient, admin: Admin) -> None:
    normal = admin.create_topic()
    with pytest.raises(ClientError, match="takes NORMAL messages, this one is DELAY"):
        java_remoting.producer().send([RemotingMessage(normal, b"x", delay_level=1)])
