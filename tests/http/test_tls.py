"""The HTTP API with a certificate of the user's: encrypted, renewed without a restart, refused where it is none."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from exod.config.settings import build
from exod.diagnostics.findings import of_api
from exod.errors import ConfigError
from exod.http import server
from exod.http.server import HttpApi
from exod.http.tls import Certificate
from tests.fake_daemon import FakeDaemon
from tests.http.raw_http import DEADLINE_S
from tests.http.served import served

pytestmark = pytest.mark.anyio


def write_pair(folder: Path, name: str = "first") -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )
    pem = serialization.Encoding.PEM
    files = folder / "cert.pem", folder / "key.pem"
    files[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    files[1].chmod(0o600)
    files[0].write_bytes(made.public_bytes(pem))
    return files


async def subject_of(port: int) -> tuple[str, bytes]:
    """(the name in the certificate that is shown, the answer's first line)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        first = await reader.readline()
        writer.close()
    name = x509.load_der_x509_certificate(shown).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0]
    return str(name.value), first


async def test_the_api_speaks_tls_and_nothing_else(tmp_path: Path) -> None:
    async with served(tls=write_pair(tmp_path)) as place:
        assert place.api.url.startswith("https://127.0.0.1:")
        assert await subject_of(place.api.port) == ("first", b"HTTP/1.1 200 OK\r\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", place.api.port)
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(ConnectionError):
                assert b"200" not in await reader.read()
        writer.close()


async def test_a_handshake_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn alone waits for 60 s, which is longer than this test does."""
    assert server.HANDSHAKE_DEADLINE_S == 10.0
    monkeypatch.setattr(server, "HANDSHAKE_DEADLINE_S", 0.3)
    async with served(tls=write_pair(tmp_path)) as place:
        for begun in (b"", bytes.fromhex("16030100c8010000c40303")):
            reader, writer = await asyncio.open_connection("127.0.0.1", place.api.port)
            writer.write(begun)
            async with asyncio.timeout(DEADLINE_S):
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            writer.close()
        shown = None
        async with asyncio.timeout(DEADLINE_S):
            while shown is None:  # on a busy machine a good handshake may need longer than this test's deadline
                with contextlib.suppress(ConnectionError):
                    shown = await subject_of(place.api.port)
        assert shown == ("first", b"HTTP/1.1 200 OK\r\n")


async def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    async with served(tls=write_pair(tmp_path)) as place:
        write_pair(tmp_path, "second")
        async with asyncio.timeout(DEADLINE_S):
            while (await subject_of(place.api.port))[0] != "second":  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.1)


async def test_half_a_renewal_keeps_the_certificate_that_works(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path)
    loaded = Certificate(certificate, key)
    certificate.write_text("half of it")
    loaded.renew()
    key.unlink()
    loaded.renew()
    write_pair(tmp_path, "second")
    loaded.renew()


@pytest.mark.parametrize("spoil", ["missing", "no pem", "another key", "readable", "password"])
async def test_what_cannot_be_used_keeps_the_api_from_starting(tmp_path: Path, spoil: str) -> None:
    certificate, key = write_pair(tmp_path)
    match spoil:
        case "missing":
            key.unlink()
        case "no pem":
            certificate.write_text("nothing")
        case "another key":
            (tmp_path / "other").mkdir()
            key = write_pair(tmp_path / "other")[1]
        case "readable":
            key.chmod(0o644)
        case _:
            loaded = serialization.load_pem_private_key(key.read_bytes(), None)
            key.write_bytes(
                loaded.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.BestAvailableEncryption(b"secret"),
                )
            )
    with pytest.raises(ConfigError) as caught:
        HttpApi(FakeDaemon(), "127.0.0.1", 0, tls=(certificate, key)).start()
    assert "\n" not in str(caught.value)


async def test_one_of_the_two_keys_alone_is_refused() -> None:
    for key in ("tls_cert", "tls_key"):
        with pytest.raises(ConfigError, match="together with api"):
            build({"api": {key: "/x.pem"}}, {}, None)


async def test_doctor_says_where_keys_cross_a_network_as_they_are() -> None:
    assert of_api("127.0.0.1", True, False) == []
    assert of_api("0.0.0.0", False, True) == []
    (finding,) = of_api("0.0.0.0", False, False)
    assert (finding.code, finding.severity) == ("api_plain", "warning")
    assert "api.tls_cert" in finding.cure
