"""The door: parses arguments, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="saturnmq",
    help="SaturnMQ: a RocketMQ 5 server in Python.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _port(text: str) -> Any:
    return typer.Option(help=text, min=0, max=65535, show_default=False)


ConfigFile = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="An Apache .conf file (Java properties).", exists=True, dir_okay=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its Apache name; wins over the file. Repeatable."),
]
PrintConfig = Annotated[bool, typer.Option("-p", "--print-config", help="Print every setting and stop.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Where messages are kept. Default: ./saturnmq-data", file_okay=False)
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 or :: for all.")]
ReadyFile = Annotated[
    Path | None, typer.Option(help="Write a JSON object with the addresses here when clients can connect.")
]
Advertise = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[LISTENER=]HOST[:PORT]",
        help="Address that routes give to clients instead of the one they dialled, for all listeners or for "
        "one of grpc, broker, proxy-remoting. Repeatable.",
    ),
]
TestClock = Annotated[bool, typer.Option("--test-clock", hidden=True)]


@app.command()
def local(
    data_dir: DataDir = None,
    host: Host = "127.0.0.1",
    namesrv_port: Annotated[int | None, _port("NameServer. Default: 9876")] = None,
    broker_port: Annotated[int | None, _port("Broker, Remoting (VIP: two less). Default: 10911")] = None,
    proxy_remoting_port: Annotated[int | None, _port("Proxy, Remoting. Default: 8080")] = None,
    grpc_port: Annotated[int | None, _port("Proxy, gRPC with TLS or without. Default: 8081")] = None,
    http_port: Annotated[int | None, _port("/healthz, /readyz, /metrics. Default: 5557")] = None,
    dev: Annotated[
        bool, typer.Option("--dev", help="For a laptop: ASYNC_FLUSH, and topics and groups are created on first use.")
    ] = False,
    advertise: Advertise = None,
    ready_file: ReadyFile = None,
    config: ConfigFile = None,
    settings: Settings = None,
    test_clock: TestClock = False,
) -> None:
    """NameServer, Broker and Proxy in one process. Port 0 means any free port."""
    from saturnmq import daemons

    daemons.main(
        daemons.Local,
        daemons.Options(
            config=config,
            settings=settings or [],
            host=host,
            data_dir=data_dir,
            ports={
                "namesrv": namesrv_port,
                "broker": broker_port,
                "proxy_remoting": proxy_remoting_port,
                "grpc": grpc_port,
                "http": http_port,
            },
            dev=dev,
            advertise=advertise or [],
            ready_file=ready_file,
            test_clock=test_clock,
        ),
    )


@app.command()
def namesrv(
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    host: Host = "127.0.0.1",
    port: Annotated[int | None, _port("Default: listenPort, 9876")] = None,
    ready_file: ReadyFile = None,
    settings: Settings = None,
) -> None:
    """A NameServer: which broker has which topic."""
    from saturnmq import daemons

    daemons.main(
        daemons.Namesrv,
        daemons.Options(
            config=config,
            settings=settings or [],
            host=host,
            ports={"namesrv": port},
            ready_file=ready_file,
            print_config=print_config,
        ),
    )


@app.command()
def broker(
    namesrv_addr: Annotated[
        str | None, typer.Option("-n", "--namesrv", help="NameServers to register with: host:port;host:port")
    ] = None,
    config: ConfigFile = None,
    print_config: PrintConfig = False,
    data_dir: DataDir = None,
    host: Host = "127.0.0.1",
    port: Annotated[int | None, _port("Remoting (VIP: two less). Default: listenPort, 10911")] = None,
    http_port: Annotated[int | None, _port("/healthz, /readyz, /metrics. Default: 5557")] = None,
    advertise: Advertise = None,
    ready_file: ReadyFile = None,
    settings: Settings = None,
    test_clock: TestClock = False,
) -> None:
    """A Broker: stores messages, serves Remoting clients and Proxies."""
    from saturnmq import daemons

    daemons.main(
        daemons.Broker,
        daemons.Options(
            config=config,
            settings=[*(settings or []), *([f"namesrvAddr={namesrv_addr}"] if namesrv_addr else [])],
            host=host,
            data_dir=data_dir,
            ports={"broker": port, "http": http_port},
            advertise=advertise or [],
            ready_file=ready_file,
            print_config=print_config,
            test_clock=test_clock,
        ),
    )


@app.command()
def version() -> None:
    """Print the version."""
    from saturnmq import __version__

    typer.echo(__version__)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
