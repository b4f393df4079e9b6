"""The composition root: builds the processes from their rooms. The only module that knows Broker and Proxy.

A daemon's life: read settings, open the store, listen, say so (banner, ready file), wait for SIGTERM or SIGINT, drain,
close the store. Everything lives on one event loop; what would block it runs in two small thread pools.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import randrange

import msgspec

from saturnmq import __version__
from saturnmq.broker import remoting as broker_remoting
from saturnmq.broker.broker import Broker as BrokerRoom
from saturnmq.broker.registration import RemoteNameServers
from saturnmq.disk.real import RealDisk
from saturnmq.kernel import configfile
from saturnmq.kernel.config import BrokerConfig, Limits, NameserverConfig, ProxyConfig, StoreConfig
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.metrics import Metrics
from saturnmq.nameserver import remoting as nameserver_remoting
from saturnmq.nameserver.routes import RouteTable
from saturnmq.net.addresses import local_host
from saturnmq.net.clock import LoopClock
from saturnmq.net.grpc_server import GrpcServer
from saturnmq.net.http import HttpServer
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.net.remoting_server import RemotingServer
from saturnmq.net.tasks import ThreadBackground, wait_reply
from saturnmq.net.tls import CERTIFICATE_FILE, server_context
from saturnmq.proxy import grpc as proxy_grpc
from saturnmq.proxy.proxy import Proxy
from saturnmq.store.results import StoreRefused
from saturnmq.store.store import Store

logger = logging.getLogger("saturnmq")

#: how long requests that run at SIGTERM may still take
DRAIN_MS = 5_000
DEFAULT_DATA_DIR = "saturnmq-data"
DEFAULT_NAMESRV_PORT = 9876
DEFAULT_HTTP_PORT = 5557
WILDCARDS = ("0.0.0.0", "::")
LISTENERS = ("grpc", "broker", "proxy-remoting")

#: one word for the whole loose bundle
DEV_SETTINGS = {"flushDiskType": "ASYNC_FLUSH", "devAutoCreate": "true"}


class StartError(Exception):
    """The process cannot start; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line said."""

    config: Path | None = None
    #: `key=value`
    settings: list[str] = field(default_factory=list)
    host: str = "127.0.0.1"
    #: by listener; None is the setting's, 0 any free port
    ports: Mapping[str, int | None] = field(default_factory=dict)
    data_dir: Path | None = None
    dev: bool = False
    #: `[listener=]host[:port]`
    advertise: list[str] = field(default_factory=list)
    ready_file: Path | None = None
    print_config: bool = False
    test_clock: bool = False

    def values(self, *structs: type[msgspec.Struct]) -> dict[str, str]:
        """From the file, the environment and the command line, the later ones winning. Warns of unknown keys."""
        values: dict[str, str] = {}
        if self.config is not None:
            values |= configfile.parse_properties(self.config.read_text(errors="replace"))
        values |= configfile.from_environment(os.environ, *structs)
        if self.dev:
            values |= DEV_SETTINGS
        for setting in self.settings:
            key, equals, value = setting.partition("=")
            if not equals:
                raise configfile.IllegalConfig(f"--set {setting}: write key=value")
            values[key] = value
        if self.data_dir is not None:
            values["storePathRootDir"] = str(self.data_dir)
        for warning in configfile.warnings(values, os.environ, *structs):
            logger.warning("%s", warning)
        return values

    def port(self, listener: str, default: int) -> int:
        given = self.ports.get(listener)
        return default if given is None else given

    def advertised(self, listener: str) -> Address | None:
        """What clients are told to dial instead of what they dialled; port 0 stands for the listener's own."""
        found = None
        for item in self.advertise:
            name, equals, text = item.rpartition("=")
            if equals and name not in LISTENERS:
                raise configfile.IllegalConfig(f"--advertise {item}: the listener is one of {', '.join(LISTENERS)}")
            if name in ("", listener):
                found = _address(text)
        return found


def _address(text: str) -> Address:
    """`host` or `host:port`; an IPv6 host with a port stands in brackets."""
    try:
        return Address.parse(text)
    except ValueError:
        return Address(text.strip("[]"), 0)


class Daemon:
    """What every process has: a clock, threads, metrics, servers. Owner of its listeners and of their order."""

    name: str
    configs: tuple[type[msgspec.Struct], ...]

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.values = options.values(*self.configs)
        self.clock = LoopClock(loop)
        self.metrics = Metrics()
        self.limits = Limits()
        self.servers: list[RemotingServer | GrpcServer] = []
        self.endpoints: dict[str, Address] = {}
        self.http: HttpServer | None = None
        self.ready = False

    async def start(self) -> None:
        """Listen. Clients can connect when it returns."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Refuse what is new and finish what runs."""
        self.ready = False
        await asyncio.gather(*(server.close(DRAIN_MS) for server in self.servers))

    def advice(self) -> str:
        """What the banner says below the endpoints."""
        return ""

    async def listen(self, name: str, server: RemotingServer | GrpcServer, host: str, port: int) -> Address:
        try:
            address = await server.listen(host, port)
        except OSError as error:
            flag = f"--{name.replace('_', '-')}-port"
            raise StartError(
                f"cannot listen on {Address(host, port)} for {name}: {error.strerror}. "
                f"Stop what uses it, or choose another port ({flag}; 0 takes a free one)"
            ) from error
        if server not in self.servers:
            self.servers.append(server)
        self.endpoints[name] = address
        return address

    def bind_http(self) -> None:
        """Only bind: the pages are served once clients can connect, for they take 0.1 s to import."""
        http = HttpServer(
            self.metrics,
            lambda: "" if self.ready else "the server starts or stops",
            self.clock.advance if self.options.test_clock else None,
        )
        port = self.options.port("http", DEFAULT_HTTP_PORT)
        try:
            self.endpoints["http"] = http.bind(self.options.host, port)
        except OSError as error:
            raise StartError(
                f"cannot listen on {Address(self.options.host, port)} for http: {error.strerror}. "
                "Stop what uses it, or choose another port (--http-port; 0 takes a free one)"
            ) from error
        self.http = http


class Namesrv(Daemon):
    """`saturnmq namesrv`"""

    name = "NameServer"
    configs = (NameserverConfig,)

    async def start(self) -> None:
        config = configfile.convert(self.values, NameserverConfig)
        handlers = nameserver_remoting.table(RouteTable(config, self.clock))
        server = RemotingServer(handlers, self.clock, self.limits, self.metrics, "namesrv")
        await self.listen("namesrv", server, self.options.host, self.options.port("namesrv", config.listen_port))


def _data_dir(config: StoreConfig) -> Path:
    return Path(config.store_path_root_dir or DEFAULT_DATA_DIR).expanduser().absolute()


class Broker(Daemon):
    """`saturnmq broker`"""

    name = "Broker"
    configs: tuple[type[msgspec.Struct], ...] = (BrokerConfig, StoreConfig)

    async def start(self) -> None:
        addresses = [Address.parse(text) for text in self.values.get("namesrvAddr", "").split(";") if text]
        if not addresses:
            raise configfile.IllegalConfig("no NameServer is named: use -n host:port, or namesrvAddr in the file")
        await self.start_broker()
        client = RemotingClient(self.clock, self.limits, self.metrics)
        names = RemoteNameServers(client, addresses, self.broker_config.broker_id)
        self.broker.register(names, self.registered_address())
        self.bind_http()

    async def start_broker(self) -> None:
        """Open the store, then listen: what is asked before the store is open would get a wrong answer."""
        loop = asyncio.get_running_loop()
        self.flusher = ThreadBackground(loop, "flush", 1)
        self.reader = ThreadBackground(loop, "disk", 2)
        self.broker_config = configfile.convert(self.values, BrokerConfig)
        store_config = configfile.convert(self.values, StoreConfig)
        self.data_dir = _data_dir(store_config)
        self.store = Store(RealDisk(str(self.data_dir)), store_config, self.clock, self.flusher, self.reader)
        self.store.open()
        self.broker = BrokerRoom(self.broker_config, self.store, self.clock, random=randrange, metrics=self.metrics)
        self.broker_handlers = broker_remoting.table(self.broker)
        server = RemotingServer(self.broker_handlers, self.clock, self.limits, self.metrics, "broker")
        port = self.options.port("broker", self.broker_config.listen_port)
        address = await self.listen("broker", server, self.options.host, port)
        await self._listen_vip(server, address)
        self.store.store_host = pack(
            Address(self.broker_config.broker_ip1 or reachable_host(address.host), address.port)
        )
        self.broker.start()

    async def _listen_vip(self, server: RemotingServer, address: Address) -> None:
        """Clients with vipChannelEnabled dial the port two below the one they know."""
        try:
            await server.listen(address.host, address.port - 2)
        except OSError as error:
            logger.warning(
                "cannot listen on the VIP port %d: %s; clients with vipChannelEnabled=true cannot send",
                address.port - 2, error.strerror,
            )  # fmt: skip

    def registered_address(self) -> Address:
        """What the NameServer tells clients; the host 0.0.0.0 stands for the one they dialled."""
        port = self.endpoints["broker"].port
        if advertised := self.options.advertised("broker"):
            return advertised if advertised.port else Address(advertised.host, port)
        return Address("0.0.0.0", port)

    async def stop(self) -> None:
        self.broker.polls.close()
        await super().stop()
        await wait_reply(self.broker.stop())
        self.store.close()
        self.flusher.close()
        self.reader.close()


class Local(Broker):
    """`saturnmq local`: NameServer, Broker and Proxy on one event loop, calling one another directly."""

    name = "Local mode"
    configs = (NameserverConfig, BrokerConfig, StoreConfig, ProxyConfig)

    async def start(self) -> None:
        options, host = self.options, self.options.host
        names_config = configfile.convert(self.values, NameserverConfig)
        proxy_config = configfile.convert(self.values, ProxyConfig)
        if advertised := options.advertised("grpc"):
            proxy_config = msgspec.structs.replace(proxy_config, advertise=str(advertised))
        routes = RouteTable(names_config, self.clock)
        await self.start_broker()
        self.broker.register(routes, self.registered_address())
        if self.broker_config.dev_auto_create:
            routes.on_unknown = self.broker.topic_config

        names = RemotingServer(nameserver_remoting.table(routes), self.clock, self.limits, self.metrics, "namesrv")
        await self.listen("namesrv", names, host, options.port("namesrv", DEFAULT_NAMESRV_PORT))

        self.proxy = Proxy({self.broker.name: self.broker}, routes, proxy_config, self.clock)
        one_port = options.advertised("proxy-remoting")
        handlers = self.broker_handlers | nameserver_remoting.table(routes, lambda local: one_port or local)
        remoting = RemotingServer(handlers, self.clock, self.limits, self.metrics, "proxy")
        await self.listen(
            "proxy_remoting", remoting, host, options.port("proxy_remoting", proxy_config.remoting_listen_port)
        )

        context = server_context(self.data_dir / "tls")
        grpc = GrpcServer(proxy_grpc.methods(self.proxy), self.clock, self.limits, self.metrics, context)
        await self.listen("grpc", grpc, host, options.port("grpc", proxy_config.grpc_server_port))
        self.bind_http()

    async def stop(self) -> None:
        self.proxy.close()
        await super().stop()

    def advice(self) -> str:
        certificate = self.data_dir / "tls" / CERTIFICATE_FILE
        lines = [f"  data       {self.data_dir}", f"  TLS        self-signed, {certificate}"]
        if self.options.dev:
            lines.append("  --dev      ASYNC_FLUSH: a power cut may lose the last half second; topics and groups are")
            lines.append("             created on first use; no authentication. Not for production.")
        return "\n".join([*lines, "", SNIPPETS.format(grpc=self.endpoints["grpc"], namesrv=self.endpoints["namesrv"])])


SNIPPETS = """\
  Python  Producer(ClientConfiguration("{grpc}", Credentials()), {{"topic"}})
  Java    ClientConfiguration.newBuilder().setEndpoints("{grpc}").build()
  Go      rmq.NewProducer(&rmq.Config{{Endpoint: "{grpc}", Credentials: &credentials.SessionCredentials{{}}}})
  Remoting clients: namesrvAddr = "{namesrv}"
"""


def reachable_host(host: str) -> str:
    """The host that stands in records as their store host: an IP, where we listen on all of them the first one."""
    return local_host() if host in WILDCARDS else host


# ------------------------------------------------------------------------------------------------------- running


def main(daemon: type[Daemon], options: Options) -> None:
    """Run until SIGTERM or SIGINT. Exits 1 with one line of reason when it cannot start."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        if options.print_config:
            print_config(daemon, options)
        else:
            run(_life(daemon, options))
    except (StartError, configfile.IllegalConfig, StoreRefused) as error:
        logger.error("%s", error)
        sys.exit(1)


def print_config(daemon: type[Daemon], options: Options) -> None:
    """Every setting in the file's own form, as `mqbroker -p` prints them."""
    values = options.values(*daemon.configs)
    for struct in daemon.configs:
        for key, value in msgspec.to_builtins(configfile.convert(values, struct)).items():
            print(f"{key}={str(value).lower() if isinstance(value, bool) else value}")


def run(life: Coroutine[object, object, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(life)
    else:
        uvloop.run(life)


async def _life(kind: type[Daemon], options: Options) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    daemon = kind(options, loop)
    await daemon.start()
    daemon.ready = True
    # what lives now lives for ever: the collector need not look at it again
    gc.collect()
    gc.freeze()
    _tell(daemon)
    if daemon.http is not None:
        daemon.http.start()
    await stopped.wait()
    logger.info("stopping: running requests have %d s to finish", DRAIN_MS // 1000)
    await daemon.stop()
    if daemon.http is not None:
        await daemon.http.close()
    logger.info("stopped")


def _tell(daemon: Daemon) -> None:
    """The banner for people, the ready file for programs."""
    width = max(map(len, daemon.endpoints))
    print(f"SaturnMQ {__version__} {daemon.name}, ready in {_age_s():.2f} s")
    for name, address in daemon.endpoints.items():
        print(f"  {name.replace('_', ' '):{width}}  {address}")
    print(daemon.advice(), flush=True)
    if daemon.options.ready_file is not None:
        content = {name: str(address) for name, address in daemon.endpoints.items()}
        _write_atomically(daemon.options.ready_file, {**content, "pid": os.getpid(), "version": __version__})


def _write_atomically(path: Path, content: Mapping[str, object]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(msgspec.json.encode(content))
    temporary.rename(path)


def _age_s() -> float:
    """Seconds since the process began (Linux), else since this module was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return time.monotonic() - _IMPORTED_S
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


_IMPORTED_S = time.monotonic()
