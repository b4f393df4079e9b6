"""KV configs and settings: what is kept, where, and what is refused."""

from __future__ import annotations

import errno
import json

import pytest

from saturnmq.disk.simulated import Operation, SimulatedDisk
from saturnmq.kernel.configfile import parse_properties
from saturnmq.kernel.topic import DataVersion, TopicConfig
from saturnmq.nameserver.routes import Registration
from saturnmq.testing.nameserver import KV_FILE, SETTINGS_FILE, OfflineNameServer
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode

PAIR = {"namespace": "ORDER_TOPIC_CONFIG", "key": "t", "value": "broker-a:4"}


def value(names: OfflineNameServer) -> str | None:
    return names.ask(RequestCode.GET_KV_CONFIG, PAIR).fields.get("value")


def test_pairs_survive_a_restart_in_apaches_file() -> None:
    disk = SimulatedDisk()
    names = OfflineNameServer(disk)
    assert names.ask(RequestCode.PUT_KV_CONFIG, PAIR).code == 0
    assert json.loads(disk.read_file(KV_FILE)) == {"configTable": {"ORDER_TOPIC_CONFIG": {"t": "broker-a:4"}}}
    assert value(OfflineNameServer(disk.crashed())) == "broker-a:4"
    assert names.ask(RequestCode.DELETE_KV_CONFIG, PAIR).code == 0
    assert value(OfflineNameServer(disk.crashed())) is None


def test_apaches_file_is_read() -> None:
    """In fastjson's dialect, and what is null there is absent."""
    disk = SimulatedDisk()
    disk.replace_file(KV_FILE, b'{configTable:{\'ORDER_TOPIC_CONFIG\':{"t":"broker-a:4",}}}')
    assert value(OfflineNameServer(disk)) == "broker-a:4"


def test_a_broken_file_stops_the_start() -> None:
    disk = SimulatedDisk()
    disk.replace_file(KV_FILE, b'{"configTable":[]}')
    with pytest.raises(ValueError, match=f"{KV_FILE} cannot be read: .*mend it or remove it"):
        OfflineNameServer(disk)


def test_what_cannot_be_written_is_not_changed() -> None:
    disk = SimulatedDisk()
    names = OfflineNameServer(disk)
    names.ask(RequestCode.PUT_KV_CONFIG, PAIR)
    disk.faults[Operation.WRITE, "namesrv/"] = errno.ENOSPC
    for code in (RequestCode.PUT_KV_CONFIG, RequestCode.DELETE_KV_CONFIG):
        answer = names.ask(code, {**PAIR, "value": "other"})
        assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
        assert "nothing is changed: No space left" in answer.remark
        assert value(names) == "broker-a:4"
    answer = names.ask(RequestCode.UPDATE_NAMESRV_CONFIG, body=b"orderMessageEnable=true")
    assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
    assert not names.server.config.order_message_enable


def test_pairs_are_bounded() -> None:
    names = OfflineNameServer(max_kv_config_bytes=100)
    names.ask(RequestCode.PUT_KV_CONFIG, PAIR)
    answer = names.ask(RequestCode.PUT_KV_CONFIG, {**PAIR, "value": "x" * 100})
    assert answer.code == ResponseCode.SYSTEM_BUSY
    assert "the limit is 100 (maxKvConfigBytes)" in answer.remark
    assert value(names) == "broker-a:4"


def test_settings_change_at_once_and_for_the_next_start() -> None:
    names = OfflineNameServer(max_brokers=7)
    body = b"orderMessageEnable = true\nclientRequestThreadPoolNums=16\n"
    assert names.ask(RequestCode.UPDATE_NAMESRV_CONFIG, body=body).code == 0
    settings = parse_properties(names.ask(RequestCode.GET_NAMESRV_CONFIG).body.decode())
    assert settings["orderMessageEnable"] == "true"
    assert settings["maxBrokers"] == "7"
    assert names.disk.read_file(SETTINGS_FILE) == b"orderMessageEnable=true\n"
    assert names.ask(RequestCode.UPDATE_NAMESRV_CONFIG, body=b"clientRequestThreadPoolNums=16").code == 0
    assert names.ask(RequestCode.UPDATE_NAMESRV_CONFIG).code == 0


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("rocketmqHome=/x", ResponseCode.NO_PERMISSION, "black list: rocketmqHome"),
        ("maxRoutes=9", ResponseCode.NO_PERMISSION, "black list: maxRoutes"),
        ("orderMessageEnable=perhaps", ResponseCode.INVALID_PARAMETER, "orderMessageEnable = 'perhaps' cannot be used"),
        ("orderMesageEnable=true", ResponseCode.INVALID_PARAMETER, "did you mean orderMessageEnable"),
        ("listenPort=1", ResponseCode.INVALID_PARAMETER, "read at the start"),
        ("enableControllerInNamesrv=true", ResponseCode.INVALID_PARAMETER, "enableControllerInNamesrv"),
    ],
)
def test_settings_that_are_refused(text: str, code: ResponseCode, reason: str) -> None:
    names = OfflineNameServer(config_black_list="maxRoutes")
    answer = names.ask(RequestCode.UPDATE_NAMESRV_CONFIG, body=f"supportActingMaster=true\n{text}".encode())
    assert answer.code == code
    assert reason in answer.remark
    assert not names.server.config.support_acting_master, "all or nothing"
    assert not names.disk.exists(SETTINGS_FILE)


def test_routes_wait_for_brokers_where_that_is_wanted() -> None:
    names = OfflineNameServer(need_wait_for_service=True, wait_seconds_for_service=10)
    topics = {name: TopicConfig(topic_name=name) for name in ("t", "u")}
    names.server.routes.register(
        Registration(cluster="c", broker_name="a", broker_id=0, address="a:1", topics=topics, version=DataVersion())
    )
    names.clock.advance(9_999)
    answer = names.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "t"})
    assert answer.code == ResponseCode.SYSTEM_ERROR
    assert answer.remark.startswith("name server not ready: it started 9999 ms ago")
    assert names.ask(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER).code == 0
    names.clock.advance(1)
    assert names.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": "t"}).code == 0
