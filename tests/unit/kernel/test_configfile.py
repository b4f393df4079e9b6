import pytest
from hypothesis import given
from hypothesis import strategies as st

from saturnmq.kernel.config import BrokerConfig, StoreConfig
from saturnmq.kernel.configfile import (
    IllegalConfig,
    changed,
    convert,
    from_environment,
    parse_properties,
    properties,
    refuse_promises,
    warnings,
    with_changes,
)


def test_java_properties() -> None:
    text = "\n".join(
        [
            "# a comment",
            "! another",
            "<!-- junk does not stop the reader -->",
            "brokerName = broker-a  ",
            "namesrvAddr: 127.0.0.1:9876;127.0.0.2:9876",
            "deleteWhen 04",
            "messageDelayLevel=1s 5s \\",
            "    10s",
            r"storePathRootDir=/a\ b\u0041",
            r"windows=C\:\\x",
            "empty=",
        ]
    )
    assert parse_properties(text) == {
        "<!--": "junk does not stop the reader -->",
        "brokerName": "broker-a",
        "namesrvAddr": "127.0.0.1:9876;127.0.0.2:9876",
        "deleteWhen": "04",
        "messageDelayLevel": "1s 5s 10s",
        "storePathRootDir": "/a bA",
        "windows": "C:\\x",
        "empty": "",
    }


def test_one_key_space_feeds_several_structs() -> None:
    values = {"brokerIP1": "10.0.0.1", "listenPort": "10911", "flushDiskType": "ASYNC_FLUSH", "traceOn": "false"}
    broker, store = convert(values, BrokerConfig), convert(values, StoreConfig)
    assert (broker.broker_ip1, broker.listen_port, broker.trace_on) == ("10.0.0.1", 10911, False)
    assert store.flush_disk_type == "ASYNC_FLUSH"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("listenPort", "many", "int"),
        ("listenPort", "65536", "65535"),
        ("flushDiskType", "FSYNC", "it takes SYNC_FLUSH or ASYNC_FLUSH"),
        ("traceOn", "perhaps", "bool"),
    ],
)
def test_a_value_that_cannot_be_read_names_its_key(key: str, value: str, reason: str) -> None:
    with pytest.raises(IllegalConfig, match=f"{key} = '{value}' cannot be used: .*{reason}"):
        convert({key: value}, BrokerConfig if key != "flushDiskType" else StoreConfig)


def test_misspelt_settings_are_guessed_and_the_others_named_in_one_line() -> None:
    names = ["nameSrvAddr", "brokerName", "useTLS", "mapedFileSizeCommitLog", "waitTimeMillsInSendQueue"]
    environment = ["SATURNMQ_FLUSH_DISK_TYP", "SATURNMQ_FLUSH_DISK_TYPE", "SATURNMQ_SERVICE_HOST", "HOME"]
    assert warnings(names, environment, BrokerConfig, StoreConfig) == [
        "the setting nameSrvAddr is unknown and has no effect; did you mean namesrvAddr?",
        "the setting mapedFileSizeCommitLog is unknown and has no effect; did you mean mappedFileSizeCommitLog?",
        "the environment variable SATURNMQ_FLUSH_DISK_TYP is unknown and has no effect; "
        "did you mean SATURNMQ_FLUSH_DISK_TYPE?",
        "settings without effect in this version of SaturnMQ: useTLS, waitTimeMillsInSendQueue",
    ]


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("brokerRole", "SLAVE", "replication comes with a later version"),
        ("authenticationEnabled", "True", "everybody would be let in"),
        ("storeType", "defaultRocksDB", "does not read or write RocksDB"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused(key: str, value: str, why: str) -> None:
    with pytest.raises(IllegalConfig, match=f"{key} = '{value}' cannot be used: .*{why}"):
        refuse_promises({key: value})


def test_promises_that_change_nothing_are_taken() -> None:
    refuse_promises({"brokerRole": "SYNC_MASTER", "aclEnable": "FALSE", "storeType": "default", "brokerId": "0"})


def test_the_environment_sets_keys() -> None:
    environment = {"SATURNMQ_FLUSH_DISK_TYPE": "ASYNC_FLUSH", "HOME": "/root"}
    assert from_environment(environment, StoreConfig, BrokerConfig) == {"flushDiskType": "ASYNC_FLUSH"}


KEYS = st.text(min_size=1).filter(lambda key: key.strip() == key)


@given(st.dictionaries(KEYS, st.text().map(str.strip)))
def test_what_is_written_is_read(values: dict[str, str]) -> None:
    written = properties(values)
    assert parse_properties(written) == values
    assert written.isascii()
    assert parse_properties(with_changes(written, {"another": "value"})) == {**values, "another": "value"}


def test_changes_leave_the_rest_of_a_file_alone() -> None:
    text = "# ours\nbrokerName = a\n\n  traceOn: true\nmessageDelayLevel=1s \\\n    5s\nbrokerName=b"
    assert with_changes(text, {"brokerName": "c d", "messageDelayLevel": "1s", "listenPort": 1, "traceOn": False}) == (
        "# ours\nbrokerName=c d\n\ntraceOn=false\nmessageDelayLevel=1s\nbrokerName=c d\nlistenPort=1\n"
    )


def test_settings_of_a_running_server_change() -> None:
    broker, store = BrokerConfig(broker_name="x"), StoreConfig()
    new_broker, new_store = changed(
        [broker, store], {"traceOn": "false", "deleteWhen": "05", "sendThreadPoolNums": "4"}
    )
    assert new_broker == BrokerConfig(broker_name="x", trace_on=False)
    assert new_store == StoreConfig(delete_when="05")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"traceOn": "perhaps"}, "traceOn = 'perhaps' cannot be used"),
        ({"tracOn": "true"}, "the setting tracOn is unknown; did you mean traceOn"),
        ({"brokerRole": "SLAVE"}, "brokerRole = 'SLAVE' cannot be used"),
    ],
)
def test_changes_that_are_refused(changes: dict[str, str], reason: str) -> None:
    with pytest.raises(IllegalConfig, match=reason):
        changed([BrokerConfig(), StoreConfig()], changes)
