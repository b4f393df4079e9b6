"""Certificates and TLS settings of our ports.

Clients of RocketMQ 5 ask for TLS unless told otherwise and take any certificate (Java, Go), so a server needs one from
its first start: it makes its own. `cryptography` is imported only then.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
import time
from pathlib import Path

CERTIFICATE_FILE = "tls-certificate.pem"
KEY_FILE = "tls-key.pem"
#: what Apple's and Google's clients accept as the longest
LIFETIME_DAYS = 825
#: a certificate with less than this left is made anew at the next start
RENEW_DAYS = 30


def server_context(directory: str | Path, certificate: str = "", key: str = "") -> ssl.SSLContext:
    """TLS for an HTTP/2 port: version 1.2 or later, ALPN h2.

    `certificate` and `key` name PEM files; without them the development certificate in `directory` serves, and is made
    when it is not there. Raises OSError (ssl.SSLError is one) for files that cannot be used.
    """
    if certificate:
        files = Path(certificate), Path(key or certificate)
    else:
        files = development_certificate(Path(directory))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    # RFC 9113, 9.2.2: of TLS 1.2 only the suites with forward secrecy and AEAD
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(*files)
    return context


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
