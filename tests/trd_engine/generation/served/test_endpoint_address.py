"""Where requests may go: by scheme and by network, resolved once; the certificate is for the name."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.trd_engine.generation.scripted_server import ScriptedServer
from tests.trd_engine.teachers.endpoint.test_openai_compatible import Reply
from trd_data import network_address
from trd_data.network_address import Network
from trd_engine.generation.served.client import Endpoint, EndpointClient
from trd_engine.generation.served.servers import pin_address
from trd_engine.runtime.errors import TeacherRefusedError, TeacherUnreachableError

NAME = "teacher.test"


@pytest.mark.parametrize(
    ("network", "address", "is_allowed"),
    [
        ("public", "93.184.216.34", True),
        ("public", "10.1.2.3", False),
        ("public", "127.0.0.1", False),
        ("public", "169.254.169.254", False),
        ("public", "::1", False),
        ("public", "::ffff:10.0.0.1", False),
        ("public", "100.64.0.1", False),
        ("public", "2606:2800:220:1:248:1893:25c8:1946", True),
        ("private", "10.1.2.3", True),
        ("private", "192.168.7.1", True),
        ("private", "fd00::1", True),
        ("private", "127.0.0.1", False),
        ("private", "169.254.169.254", False),
        ("private", "fe80::1%eth0", False),
        ("private", "0.0.0.0", False),
        ("public", "64:ff9b::7f00:1", False),
        ("public", "64:ff9b::a9fe:a9fe", False),
        ("public", "64:ff9b::a00:1", False),
        ("public", "64:ff9b:1::7f00:1", False),
        ("public", "64:ff9b::5db8:d822", True),
        ("private", "64:ff9b::a00:1", True),
        ("private", "64:ff9b::7f00:1", False),
        ("public", "2002:7f00:1::1", False),
        ("public", "2002:a00:1::", False),
        ("private", "2002:a9fe:a9fe::", False),
        ("public", "2001:0:7f00:1::", False),
        ("public", "2001:0:4136:e378:8000:63bf:80ff:fffe", False),
        ("public", "::127.0.0.1", False),
        ("public", "::ffff:0:7f00:1", False),
        ("public", "::ffff:127.0.0.1", False),
        ("public", "0.0.0.0", False),
        ("public", "::", False),
        ("public", "ff02::1", False),
        ("loopback", "64:ff9b::7f00:1", False),
        ("loopback", "2002:7f00:1::1", False),
        ("loopback", "0.0.0.0", False),
        ("loopback", "::ffff:127.0.0.1", True),
        ("loopback", "127.0.0.1", True),
        ("loopback", "::1", True),
        ("loopback", "10.1.2.3", False),
        ("loopback", "93.184.216.34", False),
    ],
)
def test_only_addresses_of_the_network_are_called(network: Network, address: str, is_allowed: bool) -> None:
    def pin() -> str:
        return pin_address("big", f"https://{NAME}/v1/", network, resolve=lambda host, port: [address]).url

    if is_allowed:
        assert ipaddress.ip_address(address.partition("%")[0]).compressed in pin() or "ffff" in address
        assert pin().endswith(":443/v1")
        return
    with pytest.raises(TeacherRefusedError, match="outside its network") as raised:
        pin()
    assert NAME not in str(raised.value)
    assert address not in str(raised.value)


def test_one_bad_address_among_good_ones_is_enough() -> None:
    with pytest.raises(TeacherRefusedError, match="outside its network"):
        pin_address("big", f"https://{NAME}/v1", "public", resolve=lambda host, port: ["93.184.216.34", "10.0.0.1"])


@pytest.mark.parametrize(
    ("url", "network"),
    [
        ("http://teacher.test/v1", "public"),
        ("http://teacher.test/v1", "private"),
        ("https://user:word@teacher.test/v1", "public"),
        ("file:///etc/passwd", "loopback"),
        ("https:///v1", "public"),
    ],
)
def test_addresses_of_another_form_are_refused(url: str, network: Network) -> None:
    with pytest.raises(TeacherRefusedError, match="its address must be"):
        pin_address("big", url, network, resolve=lambda host, port: ["93.184.216.34"])


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(TeacherUnreachableError, match="big: its host name cannot be resolved"):
        pin_address("big", "https://no-such-host.invalid/v1", "public")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate for `NAME`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, key_pem = folder / "certificate.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, key_pem


def test_the_name_is_resolved_once_and_the_certificate_is_for_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real TLS server: trusted by its name, reached by the pinned number, whatever the name becomes later."""
    pem, key_pem = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    num_resolved = 0

    def resolve(host: str, port: int) -> list[str]:
        nonlocal num_resolved
        num_resolved += 1
        return ["127.0.0.1"] if host in (NAME, "other.test") and num_resolved <= 2 else ["10.0.0.1"]

    monkeypatch.setattr(network_address, "_resolve", resolve)
    server = ScriptedServer(lambda received, number: Reply(document={"number": number}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        port = server.server_address[1]
        client = EndpointClient(Endpoint("big", f"https://{NAME}:{port}/v1", "m", network="loopback", max_tries=1))
        for expected in ({"number": 0}, {"number": 1}):
            assert client.post_all("x", [{}], lambda document, _: document, lambda _: None) == [expected]
        assert num_resolved == 1
        other = EndpointClient(Endpoint("odd", f"https://other.test:{port}/v1", "m", network="loopback", max_tries=1))
        with pytest.raises(TeacherUnreachableError, match="certificate"):
            other.post_all("x", [{}], lambda document, _: document, lambda _: None)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "017700000001", "127.1", "0", "[::ffff:7f00:1]", "localhost"]
)
def test_other_spellings_of_this_machine_are_not_on_the_internet(host: str) -> None:
    for network in ("public", "private"):
        with pytest.raises((TeacherRefusedError, TeacherUnreachableError)):
            pin_address("big", f"https://{host}/v1", network)  # type: ignore[arg-type]
