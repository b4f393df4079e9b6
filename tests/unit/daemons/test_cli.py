"""The command line: what it takes, and what becomes of it."""

from pathlib import Path
from typing import Any

import pytest

from saturnmq.__main__ import parse
from saturnmq.daemons.options import Options


def given(*arguments: str) -> tuple[str, dict[str, Any]]:
    """The command, and what was given of its options."""
    command, fields = parse(arguments)
    Options(**fields)  # takes every field
    fields["ports"] = {name: port for name, port in fields["ports"].items() if port is not None}
    return command, {name: value for name, value in fields.items() if value}


def test_every_option_of_local_mode() -> None:
    command, fields = given(
        "local",
        *("--data-dir", "/data", "--host", "0.0.0.0", "--dev", "--ready-file", "/run/ready", "-c", "broker.conf"),
        *("--namesrv-port", "1", "--broker-port", "2", "--proxy-remoting-port", "3", "--grpc-port", "4"),
        *("--http-port", "0", "--advertise", "mq.example", "--advertise", "grpc=mq.example:443"),
        *("--set", "flushDiskType=ASYNC_FLUSH", "--set", "brokerName=b", "--test-clock"),
    )
    assert command == "local"
    assert fields == {
        "data_dir": Path("/data"),
        "host": "0.0.0.0",
        "dev": True,
        "ready_file": Path("/run/ready"),
        "config": Path("broker.conf"),
        "ports": {"namesrv": 1, "broker": 2, "proxy_remoting": 3, "grpc": 4, "http": 0},
        "advertise": ["mq.example", "grpc=mq.example:443"],
        "settings": ["flushDiskType=ASYNC_FLUSH", "brokerName=b"],
        "test_clock": True,
    }


@pytest.mark.parametrize("names", ["-n -c -p", "--namesrvAddr --configFile --printConfigItem"])
def test_the_options_of_apaches_broker(names: str) -> None:
    addresses, config, print_config = names.split()
    assert given("broker", addresses, "a:1;b:2", config, "broker.conf", print_config) == (
        "broker",
        {
            "host": "127.0.0.1",
            "config": Path("broker.conf"),
            "print_config": True,
            "settings": ["namesrvAddr=a:1;b:2"],
        },
    )


def test_the_options_of_apaches_nameserver() -> None:
    assert given("namesrv", "-c", "namesrv.conf", "-p") == (
        "namesrv",
        {"host": "127.0.0.1", "config": Path("namesrv.conf"), "print_config": True},
    )


def test_workers_of_a_proxy() -> None:
    _, fields = given("proxy", "--workers", "4", "--worker", "2:5:6")
    assert (fields["workers"], fields["worker"]) == (4, (2, 5, 6))


@pytest.mark.parametrize(("command", "flag"), [("namesrv", "--namesrv-port"), ("broker", "--broker-port")])
def test_the_port_of_a_process_that_has_one(command: str, flag: str) -> None:
    assert given(command, "--port", "7") == given(command, flag, "7")


def test_of_an_option_given_twice_the_last_one_wins() -> None:
    _, fields = given("local", "--grpc-port", "1", "--grpc-port", "2", "--host", "::1", "--host", "::")
    assert fields["ports"] == {"grpc": 2}
    assert fields["host"] == "::"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["local", "--grpc-port", "65536"], "argument --grpc-port: '65536' is not a port (0 to 65535)"),
        (["local", "--grpc-port", "-1"], "is not a port"),
        (["local", "--grpc-port", "८०"], "is not a port"),
        (["local", "--grcp-port", "1"], "unrecognized arguments: --grcp-port"),
        (["local", "--broker", "1"], "unrecognized arguments: --broker"),  # no abbreviations: they age badly
        (["proxy", "--workers", "0"], "'0' is not a number of processes (1 to 64)"),
        (["local", "--workers", "2"], "Local mode is one process: start `saturnmq namesrv`, `broker` and `proxy"),
        (["lokal"], "invalid choice: 'lokal'"),
    ],
)
def test_what_cannot_be_understood(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    with pytest.raises(SystemExit) as exit_status:
        parse(arguments)
    assert exit_status.value.code == 2
    assert says in capsys.readouterr().err


def test_without_a_command_it_tells_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        parse([])
    assert exit_status.value.code == 2
    said = capsys.readouterr().out
    assert all(command in said for command in ("local", "namesrv", "broker", "version"))
