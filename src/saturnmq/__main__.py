"""The door: parses arguments, nothing else.

With argparse: whatever is imported here is paid for by every start of a server, in time and in memory.
"""

from __future__ import annotations

import signal
import sys
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saturnmq import __version__

#: listener → what listens there
PORTS = {
    "namesrv": "NameServer (default 9876)",
    "broker": "Broker, Remoting (default 10911); its VIP port is two less",
    "proxy_remoting": "Proxy, Remoting (default 8080)",
    "grpc": "Proxy, gRPC with TLS or without (default 8081)",
    "http": "/healthz, /readyz and /metrics (default 5557; 5558 of a NameServer, 5559 of a Proxy)",
}
MAX_WORKERS = 64
EPILOG = "Of an option given twice the last one wins."


def main() -> None:
    # until there is something to finish, Ctrl-C just ends the process
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] == ["admin"]:
        from saturnmq.admin import cli

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends us, silently
        sys.exit(cli.main(sys.argv[2:]))
    command, given = parse(sys.argv[1:])
    if command == "version":
        print(__version__)
        return
    from saturnmq.daemons import life, options  # 0.1 s

    life.main(command, options.Options(**given))


def parse(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The command, and the fields of its `daemons.options.Options`. Exits when the arguments cannot be understood."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    if command is None:
        parser.print_help()
        sys.exit(2)
    given["ports"] = {name: given.pop(f"{name}_port") for name in PORTS if f"{name}_port" in given}
    if namesrv := given.pop("namesrv", None):
        given["settings"] = [*given["settings"], f"namesrvAddr={namesrv}"]
    if mode := given.pop("proxyMode", None):
        given["settings"] = [*given["settings"], f"proxyMode={mode}"]
    return command, given


def _parser() -> ArgumentParser:
    parser = ArgumentParser("saturnmq", description="SaturnMQ: a RocketMQ 5 server in Python.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    def command(name: str, summary: str) -> ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary, epilog=EPILOG, allow_abbrev=False)

    local = command("local", "NameServer, Broker and Proxy in one process.")
    _add_store(local)
    _add_ports(local, *PORTS)
    local.add_argument(
        "--dev", action="store_true", help="for a laptop: ASYNC_FLUSH, and topics and groups are created on first use"
    )
    local.add_argument("--workers", type=_no_workers, default=SUPPRESS, help=SUPPRESS)
    _add_advertise(local)
    _add_proxy_config(local)
    _add_common(local)

    namesrv = command("namesrv", "A NameServer: which broker has which topic.")
    namesrv.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="for KV configs and changed settings, ./saturnmq-data"
    )
    _add_ports(namesrv, "namesrv", short="--port")
    _add_ports(namesrv, "http")
    _add_print_config(namesrv)
    _add_common(namesrv)

    broker = command("broker", "A Broker: stores messages, serves Remoting clients and Proxies.")
    _add_namesrv(broker, "NameServers to register with")
    _add_store(broker)
    _add_ports(broker, "broker", short="--port")
    _add_ports(broker, "http")
    _add_advertise(broker)
    _add_print_config(broker)
    _add_common(broker)

    proxy = command("proxy", "A Proxy over Brokers, ours or Apache's: serves clients of both protocols, keeps nothing.")
    _add_namesrv(proxy, "NameServers that know the Brokers")
    proxy.add_argument("--data-dir", type=Path, metavar="DIR", help="for the self-signed certificate, ./saturnmq-data")
    _add_proxy_config(proxy)
    proxy.add_argument("-pm", "--proxyMode", metavar="CLUSTER", help="taken for Apache's sake; Local mode is `local`")
    proxy.add_argument("--workers", type=_workers, default=1, metavar="N", help="processes that share the ports")
    proxy.add_argument("--worker", type=_inlet, help=SUPPRESS)
    _add_ports(proxy, "grpc", short="--port")
    _add_ports(proxy, "proxy_remoting", "http")
    _add_advertise(proxy)
    _add_print_config(proxy)
    _add_common(proxy)

    command("admin", "Look into the files of a store, or check all of them: `saturnmq admin --help`.")
    command("version", "Print the version.")
    return parser


def _add_common(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1), 0.0.0.0 or :: for all")
    add("--ready-file", type=Path, metavar="FILE", help="there, with the addresses as JSON, while clients can connect")
    add("-c", "--config", "--configFile", type=Path, metavar="FILE", help="an Apache .conf file (Java properties)")
    add(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE",
        help="any setting by its Apache name; wins over the file; repeatable",
    )  # fmt: skip


def _add_namesrv(parser: ArgumentParser, purpose: str) -> None:
    parser.add_argument("-n", "--namesrv", "--namesrvAddr", metavar="HOST:PORT[;…]", help=f"{purpose} ($NAMESRV_ADDR)")


def _add_proxy_config(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-pc", "--proxyConfigPath", dest="proxy_config", type=Path, metavar="FILE", help="Apache's rmq-proxy.json"
    )


def _add_store(parser: ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where messages are kept, ./saturnmq-data")
    parser.add_argument("--test-clock", action="store_true", help=SUPPRESS)


def _add_ports(parser: ArgumentParser, *listeners: str, short: str = "") -> None:
    for name in listeners:
        flags = [flag for flag in (f"--{name.replace('_', '-')}-port", short) if flag]
        parser.add_argument(*flags, type=_port, metavar="PORT", dest=f"{name}_port", help=f"{PORTS[name]}; 0: any")


def _add_advertise(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--advertise", action="append", default=[], metavar="[LISTENER=]HOST[:PORT]",
        help="address that routes give to clients instead of the one they dialled; LISTENER is grpc, broker or "
        "proxy-remoting, without it all of them; repeatable",
    )  # fmt: skip


def _add_print_config(parser: ArgumentParser) -> None:
    parser.add_argument("-p", "--print-config", "--printConfigItem", action="store_true", help="print every setting")


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_WORKERS:
        raise ArgumentTypeError(f"{text!r} is not a number of processes (1 to {MAX_WORKERS})")
    return int(text)


def _no_workers(_: str) -> int:
    raise ArgumentTypeError("Local mode is one process: start `saturnmq namesrv`, `broker` and `proxy --workers N`")


def _inlet(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(":")))


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


if __name__ == "__main__":
    main()
