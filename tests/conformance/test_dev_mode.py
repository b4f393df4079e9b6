"""`--dev`: whatever a client names is created on first use."""

from harness.admin import GET_ROUTEINFO_BY_TOPIC, RemotingConnection

from saturnmq.testing.server import LocalServer


def test_the_route_of_an_unknown_topic_creates_it() -> None:
    """A Remoting consumer asks for the route first and never names the topic to the broker without one."""
    with LocalServer() as server:
        names = RemotingConnection(server.namesrv)
        assert b'"brokerName":"broker-a"' in names.call(GET_ROUTEINFO_BY_TOPIC, topic="new")
        names.close()
