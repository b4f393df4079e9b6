"""The processes: what they open, in which order, and how it is closed.

Everything lives on one event loop; what would block it runs in two small thread pools.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import randrange

import msgspec

from saturnmq.broker import remoting as broker_remoting
from saturnmq.broker.broker import Broker as BrokerRoom
from saturnmq.broker.registration import RemoteNameServers, keep_order
from saturnmq.daemons.options import Options
from saturnmq.disk.real import RealDisk
from saturnmq.disk.settingsfile import SettingsFile
from saturnmq.kernel import configfile
from saturnmq.kernel.config import BrokerConfig, ClusterConfig, Limits, NameserverConfig, ProxyConfig, StoreConfig
from saturnmq.kernel.configfile import IllegalConfig
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.later import Reply
from saturnmq.kernel.metrics import Metrics
from saturnmq.nameserver import remoting as nameserver_remoting
from saturnmq.nameserver.kvconfig import KvConfigs
from saturnmq.nameserver.nameserver import NameServer
from saturnmq.net.addresses import reachable_host
from saturnmq.net.clock import LoopClock
from saturnmq.net.grpc_server import GrpcServer
from saturnmq.net.http import HttpServer
from saturnmq.net.lookups import Kept
from saturnmq.net.nameservers import NameServers, RemoteRoutes
from saturnmq.net.passing import Inlet
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.net.remoting_server import Handler, RemotingServer
from saturnmq.net.tasks import ThreadBackground, wait_reply
from saturnmq.net.tls import CertificateWatch, certificate_files, server_context
from saturnmq.proxy import grpc as proxy_grpc
from saturnmq.proxy import remoting as proxy_remoting
from saturnmq.proxy.cluster import Cluster
from saturnmq.proxy.heartbeatsync import HeartbeatSync
from saturnmq.proxy.proxy import Proxy as ProxyRoom
from saturnmq.store.store import Store

logger = logging.getLogger("saturnmq")

#: how long requests that run at SIGTERM may still take
DRAIN_MS = 5_000
#: for answers that are on their way to a Proxy that stops
LINGER_MS = 200
DEFAULT_DATA_DIR = "saturnmq-data"
DEFAULT_NAMESRV_PORT = 9876
DEFAULT_HTTP_PORT = 5557
#: others than the broker's, which may run beside them
DEFAULT_NAMESRV_HTTP_PORT = 5558
DEFAULT_PROXY_HTTP_PORT = 5559
LISTEN_ADVICE = {
    errno.EADDRINUSE: "stop what uses it, or choose another port ({flag}; 0 takes a free one)",
    errno.EACCES: "ports below 1024 are for root, choose another one ({flag})",
}


def shared_listeners(config: ProxyConfig) -> dict[str, int]:
    """Those that workers share, and their default ports."""
    return {"grpc": config.grpc_server_port, "proxy_remoting": config.remoting_listen_port}


class StartError(Exception):
    """The process cannot start; the message says why and what to do."""


class Daemon:
    """What every process has: a clock, metrics, listeners. Owner of what it opened, and of the order to close it."""

    name: str
    configs: tuple[type[msgspec.Struct], ...]
    #: loggers whose everyday news nobody needs
    quiet: tuple[str, ...] = ()

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.values = options.values(*self.configs)
        self.clock = LoopClock(loop)
        self.metrics = Metrics()
        self.limits = configfile.convert(self.values, Limits)
        #: closes what is open, the last one first, also after half a start
        self.opened = AsyncExitStack()
        self.servers: list[RemotingServer | GrpcServer] = []
        self.endpoints: dict[str, Address] = {}
        self.http: HttpServer | None = None
        self.ready = False
        #: of a worker, how it gets its connections; else it accepts them itself
        self.inlet = Inlet(*options.worker[1:], self.unready, self.metrics.lines) if options.worker else None

    async def start(self) -> None:
        """Open, then listen. Clients can connect when it returns. Raises StartError, IllegalConfig, StoreRefused."""
        raise NotImplementedError

    async def listen(self, name: str, server: RemotingServer | GrpcServer, default_port: int) -> Address:
        address = self.wanted(name, default_port)
        if self.inlet is not None:
            self.inlet.serve(list(shared_listeners(ProxyConfig())).index(name), server)
        else:
            with explained(name, address):
                address = await server.listen(address.host, address.port)
        self.endpoints[name] = address
        self.servers.append(server)
        return address

    def bind_http(self, default_port: int = DEFAULT_HTTP_PORT) -> None:
        """Only bind: the pages are served once clients can connect, for they take 0.1 s to import."""
        if self.inlet is not None:
            return  # the parent answers for all
        wanted = self.wanted("http", default_port)
        self.http = HttpServer(self.page, self.unready, self.clock.advance if self.options.test_clock else None)
        self.opened.push_async_callback(self.http.close)
        with explained("http", wanted):
            self.endpoints["http"] = self.http.bind(wanted.host, wanted.port)

    def unready(self) -> str:
        return self.trouble() if self.ready else "the server starts or stops"

    def trouble(self) -> str:
        """Why clients had better go elsewhere; empty: they are welcome."""
        return ""

    def grpc_server(self, proxy: ProxyRoom, data_dir: Path) -> GrpcServer:
        config = proxy.config
        try:
            methods = proxy_grpc.methods(proxy)
        except ValueError as error:
            raise IllegalConfig(f"advertise = {config.advertise!r} cannot be used: {error}") from error
        try:
            files = certificate_files(data_dir / "tls", config.tls_cert_path, config.tls_key_path)
            context = server_context(files)
            watch = CertificateWatch(context, files, self.clock, config.tls_cert_watch_interval_ms)
        except OSError as error:
            named = config.tls_cert_path or f"in {data_dir / 'tls'}"
            raise StartError(f"the TLS certificate {named} cannot be used: {error}") from error
        self.opened.callback(watch.close)
        return GrpcServer(methods, self.clock, self.limits, self.metrics, context)

    async def listen_proxy(self, handlers: Mapping[int, Handler], grpc: GrpcServer, config: ProxyConfig) -> None:
        too = grpc if config.enable_remoting_local_proxy_grpc else None
        remoting = RemotingServer(handlers, self.clock, self.limits, self.metrics, "proxy", too)
        await self.listen("proxy_remoting", remoting, config.remoting_listen_port)
        await self.listen("grpc", grpc, config.grpc_server_port)

    def remoting_address(self, dialled: Address) -> Address:
        """Where clients of the Proxy's Remoting port find all brokers: there."""
        advertised = self.options.advertised("proxy-remoting")
        if advertised is None:
            return Address(self.proxy_config().remoting_access_addr or dialled.host, dialled.port)
        return Address(advertised.host, advertised.port or dialled.port)

    def proxy_config(self) -> ProxyConfig:
        config = configfile.convert(self.values, ProxyConfig)
        try:
            if config.metric_collector_mode == "on":
                Address.parse(config.metric_collector_address)
        except ValueError as error:
            text = f"metricCollectorAddress = {config.metric_collector_address!r} cannot be used: {error}"
            raise IllegalConfig(text) from error
        if advertised := self.options.advertised("grpc"):
            return msgspec.structs.replace(config, advertise=str(advertised))
        return config

    def page(self) -> Reply[str]:
        """What is counted, as Prometheus text."""
        return "".join(self.metrics.lines())

    def wanted(self, listener: str, default_port: int) -> Address:
        given = self.options.ports.get(listener)
        return Address(self.options.host, default_port if given is None else given)

    def name_servers(self) -> list[Address]:
        """Those that this process belongs to. Raises IllegalConfig."""
        named = self.values.get("namesrvAddr") or os.environ.get("NAMESRV_ADDR", "")
        try:
            addresses = [Address.parse(text) for text in named.split(";") if text.strip()]
        except ValueError as error:
            raise IllegalConfig(f"namesrvAddr = {named!r} cannot be used: {error}") from error
        if not addresses:
            raise IllegalConfig("no NameServer is named: use -n host:port, or namesrvAddr in the file")
        return addresses

    def name_server(self, data_dir: Path) -> NameServer:
        """With its KV configs, and with the settings that were changed while it ran last. Raises StartError,
        IllegalConfig."""
        files = data_dir / "namesrv"
        stored = files / "namesrv.properties"
        values = self.values
        try:
            if self.options.config is None and stored.exists():  # else they are in that file
                values = configfile.parse_properties(stored.read_text(errors="replace")) | values
            config = configfile.convert(values, NameserverConfig)
            kv_path = Path(config.kv_config_path or files / "kvConfig.json").absolute()
            settings_path = Path(config.config_store_path or self.options.config or stored).absolute()
            disk = RealDisk("/")  # both may be anywhere; their directories are made when there is something to write
            kv = KvConfigs(disk, str(kv_path), config.max_kv_config_bytes)
        except OSError as error:
            raise StartError(f"the files of the NameServer cannot be used: {error}") from error
        except ValueError as error:
            raise StartError(str(error)) from error
        server = NameServer(config, self.clock, kv, SettingsFile(disk, str(settings_path)))
        client = RemotingClient(self.clock, self.limits, self.metrics, name="namesrv-client")
        self.opened.push_async_callback(client.close)
        server.routes.on_min_broker_change = partial(nameserver_remoting.tell_replicas, client)
        return server

    async def close_servers(self) -> None:
        """Refuse what is new and finish what runs."""
        await asyncio.gather(*(server.close(DRAIN_MS) for server in self.servers))


@contextmanager
def explained(listener: str, wanted: Address) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        flag = f"--{listener.replace('_', '-')}-port"
        advice = LISTEN_ADVICE.get(error.errno or 0, "--host takes an address of this machine").format(flag=flag)
        reason = os.strerror(error.errno) if error.errno in LISTEN_ADVICE else error.strerror
        raise StartError(f"cannot listen on {wanted} for {listener}: {reason}; {advice}") from error


class Namesrv(Daemon):
    """`saturnmq namesrv`"""

    name = "NameServer"
    configs = (NameserverConfig, Limits)

    async def start(self) -> None:
        self.bind_http(DEFAULT_NAMESRV_HTTP_PORT)
        name_server = self.name_server(self.options.data_dir or Path(DEFAULT_DATA_DIR))
        self.opened.push_async_callback(self.close_servers)
        handlers = nameserver_remoting.table(name_server)
        server = RemotingServer(handlers, self.clock, self.limits, self.metrics, "namesrv")
        address = await self.listen("namesrv", server, name_server.config.listen_port)
        name_server.listens_on(address.port)


class Broker(Daemon):
    """`saturnmq broker`"""

    name = "Broker"
    configs: tuple[type[msgspec.Struct], ...] = (BrokerConfig, StoreConfig, Limits)

    async def start(self) -> None:
        addresses = self.name_servers()
        self.bind_http()
        client = RemotingClient(self.clock, self.limits, self.metrics)
        self.opened.push_async_callback(client.close)
        await self.start_broker()
        names = RemoteNameServers(client, addresses, self.broker.config.broker_id, self.clock)
        names.on_order_topics = partial(keep_order, self.broker.topics)
        kept = Kept(fresh_ms=self.broker.config.load_balance_poll_name_server_interval)
        self.broker.assignments.routes = RemoteRoutes(NameServers(client, addresses), self.clock, kept)
        self.broker.register(names, self.registered_address())
        self.opened.callback(self.broker.leave)  # before anybody is sent away
        await self.listen_vip()

    async def start_broker(self) -> None:
        """Open the store, then listen: what is asked before the store is open would get a wrong answer."""
        settings_path = self._find_files()
        self._open_broker(configfile.convert(self.values, StoreConfig), self._broker_config())
        self.opened.push_async_callback(self.close_servers)
        self.opened.callback(self.broker.polls.close)
        self.broker_handlers = broker_remoting.table(self.broker)
        self.broker_server = RemotingServer(self.broker_handlers, self.clock, self.limits, self.metrics, "broker")
        address = await self.listen("broker", self.broker_server, self.broker.config.listen_port)
        host = self.broker.config.broker_ip1 or reachable_host(address.host)
        self.store.store_host = pack(Address(host, self.registered_address().port))
        settings = self.broker.settings
        settings.keep = SettingsFile(RealDisk("/"), str(settings_path)).change
        settings.actual = {"listenPort": address.port, "storePathRootDir": str(self.data_dir)}
        await wait_reply(self.broker.start())

    def _find_files(self) -> Path:
        """The data directory, and the file for settings that are changed while the broker runs: the one that was read
        (`-c`), else one in that directory, which is read now. Raises StartError."""
        root = configfile.convert(self.values, StoreConfig).store_path_root_dir
        self.data_dir = Path(root or DEFAULT_DATA_DIR).expanduser().absolute()
        if self.options.config is not None:
            return self.options.config.absolute()
        path = self.data_dir / "config" / "broker.properties"
        try:
            if path.exists():
                self.values = configfile.parse_properties(path.read_text(errors="replace")) | self.values
        except OSError as error:
            raise StartError(f"{path} cannot be read: {error.strerror}") from error
        return path

    def _broker_config(self) -> BrokerConfig:
        config = configfile.convert(self.values, BrokerConfig)
        if advertised := self.options.advertised("broker"):
            return msgspec.structs.replace(config, broker_ip1=advertised.host)
        return config

    def _open_broker(self, store_config: StoreConfig, config: BrokerConfig) -> None:
        loop = asyncio.get_running_loop()
        flusher, reader = ThreadBackground(loop, "flush", 1), ThreadBackground(loop, "disk", 2)
        self.opened.callback(flusher.close)
        self.opened.callback(reader.close)
        try:
            disk = RealDisk(str(self.data_dir))
            disk.now_ms = self.clock.wall_ms
            self.store = Store(disk, store_config, self.clock, flusher, reader)
            self.store.open()
            self.opened.push_async_callback(self._close_store)
            self.broker = BrokerRoom(config, self.store, self.clock, random=randrange, metrics=self.metrics)
        except OSError as error:
            raise StartError(f"the data directory {self.data_dir} cannot be used: {error}") from error
        except ValueError as error:  # a setting or a file in the directory
            raise StartError(str(error)) from error
        self.opened.push_async_callback(self._stop_broker)

    async def listen_vip(self) -> None:
        """Clients with vipChannelEnabled dial the port two below the one they know. Last: no other listener loses its
        port to this one."""
        address = self.endpoints["broker"]
        try:
            await self.broker_server.listen(address.host, address.port - 2)
        except OSError as error:
            logger.warning(
                "cannot listen on the VIP port %d: %s; clients with vipChannelEnabled=true cannot send",
                address.port - 2, error.strerror,
            )  # fmt: skip

    def registered_address(self) -> Address:
        """What the NameServer tells clients; the host stands for the one they dialled, unless brokerIP1 is set."""
        advertised = self.options.advertised("broker")
        return Address("0.0.0.0", (advertised and advertised.port) or self.endpoints["broker"].port)

    async def _stop_broker(self) -> None:
        await wait_reply(self.broker.stop())

    async def _close_store(self) -> None:
        await wait_reply(self.store.stop())
        self.store.close()


class Local(Broker):
    """`saturnmq local`: NameServer, Broker and Proxy on one event loop, calling one another directly."""

    name = "Local mode"
    configs = (NameserverConfig, BrokerConfig, StoreConfig, ProxyConfig, Limits)
    quiet = ("saturnmq.nameserver",)  # of its one broker

    async def start(self) -> None:
        if self.values.get("namesrvAddr"):
            logger.warning("namesrvAddr has no effect: Local mode is its own NameServer")
        config = self.proxy_config()
        self.bind_http()
        await self.start_broker()
        name_server = self.name_server(self.data_dir)
        routes = self.broker.assignments.routes = name_server.routes
        self.broker.register(routes, self.registered_address())
        if self.broker.config.dev_auto_create:
            routes.on_unknown = self.broker.topic_config

        handlers = nameserver_remoting.table(name_server)
        names = RemotingServer(handlers, self.clock, self.limits, self.metrics, "namesrv")
        address = await self.listen("namesrv", names, DEFAULT_NAMESRV_PORT)
        name_server.listens_on(address.port)

        self.proxy = ProxyRoom({self.broker.name: self.broker}, self.broker, routes, config, self.clock)
        self.opened.callback(self.proxy.close)
        grpc = self.grpc_server(self.proxy, self.data_dir)
        # clients of this port reach no other one: operators find here what the broker and the NameServer have
        handlers = (
            self.broker_handlers
            | proxy_remoting.table(self.proxy, self.remoting_address, unnamed=self.broker)
            | nameserver_remoting.table(name_server, self.remoting_address)
        )
        await self.listen_proxy(handlers, grpc, config)
        await self.listen_vip()


class Proxy(Daemon):
    """`saturnmq proxy`"""

    name = "Proxy"
    configs = (ProxyConfig, ClusterConfig, Limits)

    async def start(self) -> None:
        addresses, config = self.name_servers(), self.proxy_config()
        cluster_config = configfile.convert(self.values, ClusterConfig)
        self.bind_http(DEFAULT_PROXY_HTTP_PORT)
        handlers: dict[int, Handler] = {}
        names, sends, others = self._client("namesrv"), self._client("sends"), self._client("brokers", handlers)
        self.cluster = Cluster(
            NameServers(names, addresses), sends, others, cluster_config, self.clock,
            random=randrange, expire_ms=config.channel_expired_timeout,
        )  # fmt: skip
        handlers |= self.cluster.relay.table()
        others.on_lost = lambda address: self.cluster.heartbeats.again()
        self.opened.callback(self.cluster.close)
        await wait_reply(self.cluster.start())
        self.proxy = ProxyRoom(self.cluster.brokers, self.cluster, self.cluster, config, self.clock)
        self.opened.callback(self.proxy.close)
        self.opened.push_async_callback(self._drain)
        self.data_dir = (self.options.data_dir or Path(DEFAULT_DATA_DIR)).absolute()
        served = proxy_remoting.table(self.proxy, self.remoting_address)
        await self.listen_proxy(served, self.grpc_server(self.proxy, self.data_dir), config)
        self._sync_heartbeats(cluster_config, self.endpoints["grpc"])

    def _sync_heartbeats(self, config: ClusterConfig, address: Address) -> None:
        sync = HeartbeatSync(
            self.cluster,
            self.cluster.presence,
            config.heartbeat_syncer_topic_name,
            config.heartbeat_syncer_topic_cluster_name or config.rocket_mq_cluster_name,
            # as Apache's, and the process, for several may share a port
            f"{reachable_host(address.host)}%{address.port}%{os.getpid()}",
            self.clock,
        )
        sync.start()
        self.opened.callback(sync.close)

    def trouble(self) -> str:
        return self.cluster.trouble()

    async def _drain(self) -> None:
        waited = self.proxy.drain() | self.cluster.drain()
        await self.close_servers()
        if waited:  # a broker may have answered just then: that goes back to its group
            await asyncio.sleep(LINGER_MS / 1000)

    def _client(self, name: str, handlers: Mapping[int, Handler] | None = None) -> RemotingClient:
        client = RemotingClient(self.clock, self.limits, self.metrics, handlers, name=f"proxy-{name}")
        self.opened.push_async_callback(client.close)
        return client


#: by command
DAEMONS: Mapping[str, type[Daemon]] = {"local": Local, "namesrv": Namesrv, "broker": Broker, "proxy": Proxy}
