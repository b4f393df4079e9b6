"""Settings from the file, the environment and the command line; addresses to advertise."""

import logging
from pathlib import Path

import pytest

from saturnmq.daemons.life import print_config
from saturnmq.daemons.options import Options
from saturnmq.daemons.processes import Broker
from saturnmq.kernel.config import BrokerConfig, ClusterConfig, ProxyConfig, StoreConfig
from saturnmq.kernel.configfile import IllegalConfig, convert, parse_properties

#: Apache's distribution/conf/2m-2s-async/broker-a.properties
APACHES_BROKER_CONF = """
brokerClusterName=DefaultCluster
brokerName=broker-a
brokerId=0
deleteWhen=04
fileReservedTime=48
brokerRole=ASYNC_MASTER
flushDiskType=ASYNC_FLUSH
"""


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SATURNMQ_FLUSH_DISK_TYPE", raising=False)


def test_the_later_ones_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "broker.conf"
    config.write_text("flushDiskType=ASYNC_FLUSH\nbrokerName=file\nregionId=file\nstorePathRootDir=/file")
    monkeypatch.setenv("SATURNMQ_BROKER_NAME", "environment")
    monkeypatch.setenv("SATURNMQ_REGION_ID", "environment")
    options = Options(
        config=config,
        dev=True,
        settings=["regionId=a", "regionId=flag=b", "flushDiskType=SYNC_FLUSH"],
        data_dir=Path("/flag"),
    )
    assert options.values(BrokerConfig, StoreConfig) == {
        "flushDiskType": "SYNC_FLUSH",
        "brokerName": "environment",
        "regionId": "flag=b",
        "devAutoCreate": "true",
        "storePathRootDir": "/flag",
    }


def test_apaches_own_file_works_and_one_line_names_what_has_no_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "broker.conf"
    config.write_text(APACHES_BROKER_CONF)
    values = Options(config=config).values(BrokerConfig, StoreConfig, ProxyConfig)
    assert convert(values, StoreConfig).flush_disk_type == "ASYNC_FLUSH"
    assert convert(values, BrokerConfig).broker_name == "broker-a"
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (
            logging.WARNING,
            "settings without effect in this version of SaturnMQ: brokerRole",
        )
    ]


APACHES_PROXY_JSON = """
// what operators write besides
{
  "rocketMQClusterName": "DefaultCluster", /* and */
  "namesrvAddr": "10.0.0.1:9876;10.0.0.2:9876",
  "proxyMode": "CLUSTER", "grpcServerPort": 18081,
  "enableProxyAutoRenew": false,
  "grpcBossLoopNum": 2, "maxMessagesize": 100, 'remotingAccessAddr': "http://no.comment",
}
"""


def test_apaches_file_of_a_proxy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rmq-proxy.json"
    path.write_text(APACHES_PROXY_JSON)
    values = Options(proxy_config=path).values(ProxyConfig, ClusterConfig)
    assert values["namesrvAddr"] == "10.0.0.1:9876;10.0.0.2:9876"
    config = convert(values, ProxyConfig)
    assert (config.grpc_server_port, config.enable_proxy_auto_renew) == (18081, False)
    assert convert(values, ClusterConfig).rocket_mq_cluster_name == "DefaultCluster"
    said = [record.getMessage() for record in caplog.records]
    assert any("maxMessagesize is unknown and has no effect; did you mean maxMessageSize?" in line for line in said)
    assert any("without effect" in line and "grpcBossLoopNum" in line for line in said)


def test_a_proxy_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rmq-proxy.json"
    for text in ("listenPort=1", "[]"):
        path.write_text(text)
        with pytest.raises(IllegalConfig, match="is no JSON"):
            Options(proxy_config=path).values(ProxyConfig)
    with pytest.raises(IllegalConfig, match="proxyMode = 'LOCAL' cannot be used: it takes CLUSTER or cluster"):
        convert({"proxyMode": "LOCAL"}, ClusterConfig)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(config=Path("/nowhere/broker.conf")), "/nowhere/broker.conf cannot be read: No such file"),
        (Options(settings=["flushDiskType"]), "--set flushDiskType: write key=value"),
        (Options(settings=["brokerRole=SLAVE"]), "brokerRole = 'SLAVE' cannot be used"),
    ],
)
def test_settings_that_cannot_be_used(options: Options, says: str) -> None:
    with pytest.raises(IllegalConfig, match=says):
        options.values(BrokerConfig, StoreConfig)


def test_printed_settings_are_a_file_that_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["flushDiskType=ASYNC_FLUSH", "brokerIP1=10.0.0.1", "traceOn=false"]
    print_config(Broker, Options(settings=settings))
    printed = parse_properties(capsys.readouterr().out)
    assert {setting.partition("=")[0] for setting in settings} < printed.keys()
    for struct in (BrokerConfig, StoreConfig):
        assert convert(printed, struct) == convert(dict(setting.split("=") for setting in settings), struct)


@pytest.mark.parametrize(
    ("given", "grpc", "broker"),
    [
        ([], None, None),
        (["mq.example"], "mq.example:0", "mq.example:0"),
        (["::1"], "[::1]:0", "[::1]:0"),
        (["[::1]"], "[::1]:0", "[::1]:0"),
        (["grpc=[2001:db8::1]:443"], "[2001:db8::1]:443", None),
        (["grpc=mq.example:443"], "mq.example:443", None),
        (["mq.example", "broker=10.0.0.1:30911"], "mq.example:0", "10.0.0.1:30911"),
        (["broker=a:1", "broker=b:2"], None, "b:2"),
    ],
)
def test_advertised_addresses(given: list[str], grpc: str | None, broker: str | None) -> None:
    """Port 0 stands for the listener's own."""
    options = Options(advertise=given)
    told = [options.advertised(listener) for listener in ("grpc", "broker")]
    assert [address and str(address) for address in told] == [grpc, broker]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("http=mq.example", "the listener is one of grpc, broker, proxy-remoting"),
        ("mq.example:8081", "a port belongs to one listener, as in grpc=mq.example:8081"),
        ("grpc=mq.example:http", "'mq.example:http' is neither a host nor host:port"),
        ("grpc=", "'' is neither a host nor host:port"),
        ("grpc=:8081", "':8081' is neither"),
        ("grpc=mq.example:65536", "is neither"),
    ],
)
def test_addresses_that_nobody_can_dial(given: str, says: str) -> None:
    with pytest.raises(IllegalConfig, match=says):
        Options(advertise=[given]).advertised("grpc")
