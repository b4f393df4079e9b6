"""What people read when a server is ready."""

from __future__ import annotations

from saturnmq import __version__
from saturnmq.daemons.processes import Broker, Daemon, Local, Proxy
from saturnmq.kernel.host import Address
from saturnmq.net.addresses import dialable
from saturnmq.net.tls import CERTIFICATE_FILE

#: in the order of what newcomers look for
LISTENERS = {
    "grpc": ("gRPC", "clients of version 5, with TLS or without"),
    "namesrv": ("NameServer", "Remoting clients: namesrvAddr"),
    "broker": ("Broker", "Remoting clients find it through the NameServer"),
    "proxy_remoting": ("Proxy", "namesrvAddr of clients that reach one port only"),
    "http": ("HTTP", "/healthz, /readyz, /metrics"),
}

SNIPPETS = """
  Python  pip install rocketmq-python-client

    from rocketmq import ClientConfiguration, Credentials, Message, Producer
    producer = Producer(ClientConfiguration("{grpc}", Credentials()), {{"hello"}})
    producer.startup()
    message = Message()
    message.topic, message.body = "hello", b"world"
    print(producer.send(message))

  Java    org.apache.rocketmq:rocketmq-client-java, import org.apache.rocketmq.client.apis.*

    var provider = ClientServiceProvider.loadService();
    var configuration = ClientConfiguration.newBuilder().setEndpoints("{grpc}").build();
    var producer = provider.newProducerBuilder().setClientConfiguration(configuration).setTopics("hello").build();
    var message = provider.newMessageBuilder().setTopic("hello").setBody("world".getBytes()).build();
    System.out.println(producer.send(message).getMessageId());

  Go      go get github.com/apache/rocketmq-clients/golang/v5@v5.1.3

    config := &golang.Config{{Endpoint: "{grpc}", Credentials: &credentials.SessionCredentials{{}}}}
    producer, _ := golang.NewProducer(config, golang.WithTopics("hello"))
    producer.Start()
    receipts, err := producer.Send(context.TODO(), &golang.Message{{Topic: "hello", Body: []byte("world")}})
    if err != nil {{
        panic(err)
    }}
    fmt.Println(receipts[0].MessageID)
"""


def banner(daemon: Daemon, started_s: float) -> str:
    """How long the start took, where to connect, what is loose, and how to begin."""
    lines = [f"SaturnMQ {__version__} {daemon.name}, ready after {started_s:.2f} s", ""]
    for name, (label, use) in LISTENERS.items():
        if address := daemon.endpoints.get(name):
            lines.append(f"  {label:12}{address!s:22}{use}")
    if isinstance(daemon, Broker):
        lines.append(f"  {'data':12}{daemon.data_dir}")
    if isinstance(daemon, Proxy):
        known = ", ".join(daemon.cluster.brokers) or "none yet: it goes on asking its NameServers"
        lines.append(f"  {'Brokers':12}{known}")
    if isinstance(daemon, Local):
        lines += _local(daemon)
    return "\n".join(lines)


def _local(daemon: Local) -> list[str]:
    namesrv, grpc = dialable(daemon.endpoints["namesrv"]), dialable(daemon.endpoints["grpc"])
    lines = []
    if not daemon.proxy.config.tls_cert_path:
        lines.append(f"  {'certificate':12}{daemon.data_dir / 'tls' / CERTIFICATE_FILE} (self-signed)")
    if daemon.options.dev:
        lines.append(f"  {'--dev':12}whatever a client names is created; a power cut may lose the last half second")
    else:
        create = f"mqadmin updateTopic -n {namesrv} -c {daemon.broker.config.broker_cluster_name} -t hello"
        lines.append(f"  {'topics':12}are made by hand: {create}, or start with --dev")
    if advertised := daemon.options.advertised("grpc"):
        grpc = Address(advertised.host, advertised.port or grpc.port)
    return [*lines, SNIPPETS.format(grpc=grpc)]
