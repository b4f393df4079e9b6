"""The certificate that a server makes for itself."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from saturnmq.net import tls
from saturnmq.testing.clock import VirtualClock


def test_the_development_certificate(tmp_path: Path) -> None:
    certificate, key = tls.development_certificate(tmp_path / "tls")
    assert os.stat(key).st_mode & 0o777 == 0o600
    made = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", socket.gethostname()}
    assert {str(address) for address in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}
    public_key = made.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    assert public_key.curve.name == "secp256r1"
    assert sorted(os.listdir(tmp_path / "tls")) == [tls.CERTIFICATE_FILE, tls.KEY_FILE]


def test_it_is_kept_until_it_ends_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tls.development_certificate(tmp_path)
    first = certificate.read_bytes()
    tls.development_certificate(tmp_path)
    assert certificate.read_bytes() == first
    monkeypatch.setattr(tls, "RENEW_DAYS", tls.LIFETIME_DAYS + 1)
    tls.development_certificate(tmp_path)
    assert certificate.read_bytes() != first
    assert os.stat(key).st_mode & 0o777 == 0o600


def test_a_certificate_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    certificate, _ = tls.development_certificate(tmp_path)
    certificate.write_text("nonsense")
    assert tls.server_context(tls.certificate_files(tmp_path)).cert_store_stats() == {"x509": 0, "crl": 0, "x509_ca": 0}
    assert b"BEGIN CERTIFICATE" in certificate.read_bytes()


def test_the_context(tmp_path: Path) -> None:
    context = tls.server_context(tls.certificate_files(tmp_path))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    old = [cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert old
    assert all(name.startswith("ECDHE-") and ("GCM" in name or "CHACHA20" in name) for name in old)


def test_configured_files_are_used(tmp_path: Path) -> None:
    certificate, key = tls.development_certificate(tmp_path / "mine")
    tls.server_context(tls.certificate_files(tmp_path / "unused", str(certificate), str(key)))
    together = tmp_path / "both.pem"
    together.write_bytes(certificate.read_bytes() + key.read_bytes())
    tls.server_context(tls.certificate_files(tmp_path / "unused", str(together)))
    assert not (tmp_path / "unused").exists()
    with pytest.raises(OSError, match="No such file"):
        tls.server_context(tls.certificate_files(tmp_path, str(tmp_path / "missing.pem")))


def served(context: ssl.SSLContext) -> bytes:
    """The certificate that a client gets, as PEM."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    certificate = client.getpeercert(binary_form=True)
    assert certificate is not None
    return ssl.DER_cert_to_PEM_cert(certificate).encode()


def test_a_changed_certificate_serves_new_connections(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    old, new = (tls.development_certificate(tmp_path / name) for name in ("old", "new"))
    old_pem, new_pem = old[0].read_bytes(), new[0].read_bytes()
    context = tls.server_context(old)
    watch = tls.CertificateWatch(context, old, clock, 1000)
    clock.advance(1000)
    assert served(context) == old_pem
    new[0].replace(old[0])
    clock.advance(1000)  # its key is yet to come
    assert served(context) == old_pem
    new[1].replace(old[1])
    clock.advance(1000)
    assert served(context) == new_pem
    old[0].unlink()
    clock.advance(1000)
    assert served(context) == new_pem
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    watch.close()
    clock.advance(1000)
    assert len(caplog.records) == 2
