"""Apache's mqadmin and what only ours has."""

from __future__ import annotations

from harness.admin import Admin, RemotingConnection
from harness.mqadmin import Mqadmin

from saturnmq.testing.server import LocalServer


def test_mqadmin_gives_a_topic_a_window(mqadmin: Mqadmin) -> None:
    with LocalServer() as local:
        where = ["-b", local.broker, "-t", "orders", "-r", "1", "-w", "1", "-a"]
        said = mqadmin.run(local.namesrv, "updateTopic", *where, "+dedup.window.seconds=604801")
        assert "whole numbers from 0 to 604800" in said.err
        said = mqadmin.run(local.namesrv, "updateTopic", *where, "+dedup.window.seconds=60")
        assert "success" in said.out, said
        connection = RemotingConnection(local.broker)
        fields = {"a": "p", "b": "orders", "c": "", "d": "1", "e": "0", "f": "0", "g": "7", "h": "0"}
        for body in (b"first", b"repeated"):
            connection.call(310, body, **fields, i="UNIQ_KEY\x01ID\x02")
        connection.close()
        admin = Admin(local.namesrv, local.broker)
        assert admin.end_of_queue("orders") == 1
        admin.close()
