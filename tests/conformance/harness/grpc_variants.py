"""The official gRPC clients, each as it is by default, and the other way by its own switch."""

from __future__ import annotations

from dataclasses import dataclass

from harness.programs import GO, JAVA, NODE, PYTHON, RUST, ProgramSource


@dataclass(frozen=True)
class Variant:
    source: ProgramSource
    tls: bool
    #: given the server's certificate as a root, in the variable that gRPC's own libraries read
    trusting: bool = False


GRPC_DEFAULTS = {
    "python": Variant(ProgramSource("python", PYTHON), tls=False),
    "go": Variant(ProgramSource("go", GO), tls=True),
    "node": Variant(ProgramSource("node", NODE), tls=False),
    "java": Variant(ProgramSource("java_grpc", JAVA), tls=True),
}
#: it has producers and simple consumers only, and its TLS has no certificates to connect with
GRPC_RUST = {"rust": Variant(ProgramSource("rust", RUST), tls=False)}
#: Go's switch is one for its process, hence processes of their own
GRPC_SWITCHED = {
    "go-plaintext": Variant(GRPC_DEFAULTS["go"].source, tls=False),
    "java-plaintext": Variant(GRPC_DEFAULTS["java"].source, tls=False),
}
#: Python and Node verify certificates; Go and Java take any
GRPC_TRUSTING = {
    "python-tls": Variant(GRPC_DEFAULTS["python"].source, tls=True, trusting=True),
    "node-tls": Variant(GRPC_DEFAULTS["node"].source, tls=True, trusting=True),
}
GRPC_VARIANTS = GRPC_DEFAULTS | GRPC_RUST | GRPC_SWITCHED | GRPC_TRUSTING
