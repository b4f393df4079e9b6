"""Certificates and TLS settings of our ports.

Clients of RocketMQ 5 ask for TLS unless told otherwise and take any certificate (Java, Go), so a server needs one from
its first start: it makes its own. `cryptography` is imported only then.
"""

from __future__ import annotations

import datetime
import ipaddress
import logging
import os
import socket
import ssl
import time
from pathlib import Path

from saturnmq.kernel.clock import Clock

log = logging.getLogger(__name__)

CERTIFICATE_FILE = "tls-certificate.pem"
KEY_FILE = "tls-key.pem"
#: what Apple's and Google's clients accept as the longest
LIFETIME_DAYS = 825
#: a certificate with less than this left is made anew at the next start
RENEW_DAYS = 30


def certificate_files(directory: str | Path, certificate: str = "", key: str = "") -> tuple[Path, Path]:
    """`certificate` and `key` name PEM files; without them the development certificate in `directory` serves, and is
    made when it is not there. Raises OSError.
    """
    if certificate:
        return Path(certificate), Path(key or certificate)
    return development_certificate(Path(directory))


def server_context(files: tuple[Path, Path]) -> ssl.SSLContext:
    """TLS for an HTTP/2 port: version 1.2 or later, ALPN h2.

    Raises OSError (ssl.SSLError is one) for files that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    # RFC 9113, 9.2.2: of TLS 1.2 only the suites with forward secrecy and AEAD
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(*files)
    return context


class CertificateWatch:
    """Puts a certificate whose files have changed into the context that serves it. Owner of its timer.

    Connections that stand keep what they have. Files that do not fit together serve nobody: who replaces them does so
    one after the other, and the next look finds both.
    """

    def __init__(self, context: ssl.SSLContext, files: tuple[Path, Path], clock: Clock, interval_ms: int) -> None:
        self._context, self._files, self._clock, self._interval_ms = context, files, clock, interval_ms
        self._seen = self._identity()
        self._plan()

    def close(self) -> None:
        self._timer.cancel()

    def _plan(self) -> None:
        self._timer = self._clock.call_at(self._clock.now_ms() + self._interval_ms, self._look)

    def _look(self) -> None:
        self._plan()
        try:
            found = self._identity()
            if found == self._seen:
                return
            server_context(self._files)  # all or nothing
            self._context.load_cert_chain(*self._files)
        except OSError as error:
            log.warning("the changed TLS certificate %s cannot be used, the old one serves: %s", self._files[0], error)
            return
        self._seen = found
        log.info("new connections get the changed TLS certificate %s", self._files[0])

    def _identity(self) -> list[tuple[int, int, int]]:
        """Raises OSError."""
        stats = [path.stat() for path in self._files]
        return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]


def development_certificate(directory: Path) -> tuple[Path, Path]:
    """The self-signed certificate in `directory` and its key, made when there is none or it ends soon."""
    certificate, key = directory / CERTIFICATE_FILE, directory / KEY_FILE
    if not key.exists() or not certificate.exists() or _ends_soon(certificate):
        directory.mkdir(parents=True, exist_ok=True)
        certificate_pem, key_pem = _make(["localhost", socket.gethostname()], ["127.0.0.1", "::1"])
        _write(key, key_pem, 0o600)
        _write(certificate, certificate_pem, 0o644)
    return certificate, key


def _ends_soon(certificate: Path) -> bool:
    """Reads the date with `ssl`: importing `cryptography` costs more than the rest of the start."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(certificate)
        ends = str(context.get_ca_certs()[0]["notAfter"])
    except (ssl.SSLError, IndexError):  # not one of ours
        return True
    return ssl.cert_time_to_seconds(ends) < time.time() + RENEW_DAYS * 86_400


def _make(names: list[str], addresses: list[str]) -> tuple[bytes, bytes]:
    """P-256: its handshakes cost half of RSA's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SaturnMQ development")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in dict.fromkeys(names)]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=LIFETIME_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key_pem


def _write(path: Path, content: bytes, mode: int) -> None:
    """In one step, and never readable to more than `mode` says."""
    unfinished = path.with_suffix(".tmp")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    unfinished.replace(path)
