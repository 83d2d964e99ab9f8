"""Tokens of an identity provider as bearer keys, with an issuer on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi.testclient import TestClient
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from service.keys import identity
from service.settings import Settings
from tests.service.conftest import MakeClient, MakeStanding
from tests.service.records import submit

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ROLES = {"group:ml": "submit", "group:ops": "admin", "owner:reader@x": "read"}


class Issuer:
    """A scripted provider: its document and its keys, which tests change."""

    def __init__(self) -> None:
        self.keys = [
            {**json.loads(RSAAlgorithm.to_jwk(RSA.public_key())), "kid": "rsa", "alg": "RS256", "use": "sig"},
            {**json.loads(ECAlgorithm.to_jwk(EC.public_key())), "kid": "ec", "alg": "ES256", "use": "sig"},
        ]
        self.num_asked = 0
        self.status = 200
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.num_asked += 1
                documents: dict[str, Any] = {
                    "/.well-known/openid-configuration": {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"},
                    "/keys": {"keys": issuer.keys},
                }
                content = json.dumps(documents[self.path]).encode()
                self.send_response(issuer.status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Write nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def token(self, key: Any = RSA, kid: str = "rsa", algorithm: str = "RS256", **claims: Any) -> str:
        now = int(time.time())
        standard = {"iss": self.url, "aud": "trd", "sub": "u1", "iat": now, "exp": now + 300}
        given = {name: value for name, value in {**standard, **claims}.items() if value is not None}
        return jwt.encode(given, key, algorithm=algorithm, headers={"kid": kid})


@contextmanager
def issuing() -> Iterator[Issuer]:
    made = Issuer()
    Thread(target=made.server.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as made:
        yield made


def trusting(issuer: Issuer) -> dict[str, Any]:
    """Return the settings of a service that accepts the issuer's tokens."""
    roles = json.dumps(ROLES)
    return {"oidc_issuer": issuer.url, "oidc_audience": "trd", "oidc_owner_claim": "email", "oidc_roles": roles}


@pytest.fixture
def client(make_client: MakeClient, sqlite_url: str, issuer: Issuer) -> TestClient:
    return make_client(sqlite_url, **trusting(issuer))


@pytest.fixture(scope="module")
def shared(standing: MakeStanding) -> Iterator[tuple[TestClient, Issuer]]:
    """One service and its issuer, for tokens that change nothing."""
    with issuing() as issuer, standing(**trusting(issuer)) as client:
        yield client, issuer


def call(client: TestClient, token: str, path: str = "/jobs", method: str = "GET", **options: Any) -> Any:
    return client.request(method, path, headers={"authorization": f"Bearer {token}"}, **options)


@pytest.mark.parametrize(("key", "kid", "algorithm"), [(RSA, "rsa", "RS256"), (EC, "ec", "ES256")])
def test_a_token_acts_for_its_owner(client: TestClient, issuer: Issuer, key: Any, kid: str, algorithm: str) -> None:
    token = issuer.token(key, kid, algorithm, email="ann@x", groups=["ml"])
    of_admin = submit(client)
    assert call(client, token).json()["data"] == []
    assert call(client, token, f"/jobs/{of_admin}").status_code == 404
    made = client.post("/keys", json={"name": "same owner", "owner": "ann@x"}).json()["key"]
    client.headers["authorization"] = f"Bearer {made}"
    job = submit(client)
    assert [row["id"] for row in call(client, token).json()["data"]] == [job]
    assert call(client, token, f"/jobs/{job}/cancel", "POST").status_code == 200


@pytest.mark.parametrize(
    ("claims", "answers"),
    [
        ({"email": "a@x", "groups": ["ml"]}, (200, 404, 403)),
        ({"email": "a@x", "groups": "ml"}, (200, 404, 403)),
        ({"email": "a@x", "groups": ["other", "ops"]}, (200, 404, 200)),
        ({"email": "reader@x"}, (200, 403, 403)),
        ({"email": "reader@x", "groups": ["ops"]}, (200, 404, 200)),
        ({"email": "a@x", "groups": ["other"]}, (403, 403, 403)),
        ({"email": "a@x", "groups": {"ml": True}}, (403, 403, 403)),
        ({"email": "a@x", "groups": [1, None, ["ml"]]}, (403, 403, 403)),
        ({"email": "a@x"}, (403, 403, 403)),
    ],
)
def test_roles_come_from_owner_and_groups(
    shared: tuple[TestClient, Issuer], claims: dict[str, Any], answers: tuple[int, int, int]
) -> None:
    client, issuer = shared
    token = issuer.token(**claims)
    found = (
        call(client, token).status_code,
        call(client, token, "/jobs/job_1/cancel", "POST").status_code,
        call(client, token, "/keys").status_code,
    )
    assert found == answers


def unsigned(issuer: Issuer) -> str:
    header, body, _ = issuer.token(email="a@x", groups=["ops"]).split(".")
    return f"{header}.{body}."


def none_algorithm(issuer: Issuer) -> str:
    claims = {"iss": issuer.url, "aud": "trd", "sub": "u1", "exp": time.time() + 300, "email": "a@x", "groups": ["ops"]}
    return jwt.encode(claims, "", algorithm="none", headers={"kid": "rsa"})


def signed_with_the_public_key(issuer: Issuer) -> str:
    """Sign a token with the public key as the secret of HS256, an old attack."""
    import base64
    import hashlib
    import hmac

    def part(value: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    claims = {"iss": issuer.url, "aud": "trd", "sub": "u1", "exp": time.time() + 300, "email": "a@x", "groups": ["ops"]}
    signed = part({"alg": "HS256", "kid": "rsa"}) + b"." + part(claims)
    secret = json.dumps(issuer.keys[0]).encode()
    mac = base64.urlsafe_b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).rstrip(b"=")
    return (signed + b"." + mac).decode()


FORGED: dict[str, Callable[[Issuer], str]] = {
    "expired": lambda issuer: issuer.token(email="a@x", groups=["ops"], exp=int(time.time()) - 60),
    "not yet": lambda issuer: issuer.token(email="a@x", groups=["ops"], nbf=int(time.time()) + 600),
    "without an end": lambda issuer: issuer.token(email="a@x", groups=["ops"], exp=None),
    "another audience": lambda issuer: issuer.token(email="a@x", groups=["ops"], aud="other"),
    "no audience": lambda issuer: issuer.token(email="a@x", groups=["ops"], aud=None),
    "another issuer": lambda issuer: issuer.token(email="a@x", groups=["ops"], iss="http://127.0.0.1:1"),
    "another key": lambda issuer: issuer.token(OTHER_RSA, email="a@x", groups=["ops"]),
    "an unknown key": lambda issuer: issuer.token(OTHER_RSA, "else", email="a@x", groups=["ops"]),
    "no subject": lambda issuer: issuer.token(email="a@x", groups=["ops"], sub=None),
    "no owner": lambda issuer: issuer.token(groups=["ops"]),
    "an empty owner": lambda issuer: issuer.token(groups=["ops"], email=""),
    "an owner that is a list": lambda issuer: issuer.token(groups=["ops"], email=["admin"]),
    "an owner with a line break": lambda issuer: issuer.token(groups=["ops"], email="admin\n"),
    "a very long owner": lambda issuer: issuer.token(groups=["ops"], email="a" * 101),
    "unsigned": unsigned,
    "algorithm none": none_algorithm,
    "the public key as secret": signed_with_the_public_key,
    "no JSON": lambda issuer: "a.b.c",
    "empty parts": lambda issuer: "..",
    "very long": lambda issuer: issuer.token(email="a@x", groups=["ops"], filler="x" * 20_000),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_wrong_token_is_refused_with_the_reason(shared: tuple[TestClient, Issuer], kind: str) -> None:
    client, issuer = shared
    answer = call(client, FORGED[kind](issuer))
    assert answer.status_code in (401, 413), answer.text
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "token" in answer.json()["error"]["message"]


def test_an_outage_of_the_provider_is_a_503_and_keys_still_work(
    client: TestClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.status = 500
    answer = call(client, issuer.token(email="a@x", groups=["ops"]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "identity_provider_unavailable")
    assert client.get("/jobs").status_code == 200
    asked = issuer.num_asked
    for number in range(10):
        assert call(client, issuer.token(email=f"{number}@x", groups=["ops"])).status_code == 503
    assert issuer.num_asked == asked, "a failed reading is not repeated at once"
    issuer.status = 200
    monkeypatch.setattr(identity, "REFRESH_SECONDS", 0.0)
    assert call(client, issuer.token(email="a@x", groups=["ops"])).status_code == 200
    issuer.status = 500
    monkeypatch.setattr(identity, "KEYS_SECONDS", 0.0)
    assert call(client, issuer.token(email="b@x", groups=["ops"])).status_code == 200, "known keys still do"


def test_unknown_keys_do_not_make_the_service_ask_every_time(
    client: TestClient, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = issuer.token(email="a@x", groups=["ops"])
    assert call(client, good).status_code == 200
    asked = issuer.num_asked
    for number in range(20):
        assert call(client, issuer.token(OTHER_RSA, f"new-{number}", email="a@x")).status_code == 401
    assert issuer.num_asked == asked
    monkeypatch.setattr(identity, "REFRESH_SECONDS", 0.0)
    issuer.keys.append({**json.loads(RSAAlgorithm.to_jwk(OTHER_RSA.public_key())), "kid": "new", "alg": "RS256"})
    assert call(client, issuer.token(OTHER_RSA, "new", email="a@x", groups=["ops"])).status_code == 200


def test_what_a_token_does_is_in_the_audit_log(client: TestClient, issuer: Issuer) -> None:
    token = issuer.token(email="ann@x", groups=["ops"], sub="auth0|42")
    call(client, token, "/keys", "POST", json={"name": "mine"})
    (entry,) = call(client, token, "/audit?owner=ann@x").json()["data"]
    assert (entry["action"], entry["key_id"]) == ("key.create", "oidc:auth0|42")


def test_a_token_makes_no_link_to_sign_in(client: TestClient, issuer: Issuer) -> None:
    token = issuer.token(email="ann@x", groups=["ops"])
    assert call(client, token, "/ui/sign-in-links", "POST").status_code == 403


def test_without_an_issuer_a_token_is_an_unknown_key(make_client: MakeClient, sqlite_url: str, issuer: Issuer) -> None:
    client = make_client(sqlite_url)
    assert call(client, issuer.token(email="a@x", groups=["ops"])).status_code == 401
    assert issuer.num_asked == 0


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"oidc_issuer": "http://id.example.com"}, "TRD_OIDC_ISSUER"),
        ({"oidc_issuer": "id.example.com", "oidc_audience": "trd"}, "TRD_OIDC_ISSUER"),
        ({"oidc_issuer": "https://id.example.com"}, "TRD_OIDC_AUDIENCE"),
        ({"oidc_roles": '{"ml": "submit"}'}, "TRD_OIDC_ROLES"),
        ({"oidc_roles": '{"group:": "submit"}'}, "TRD_OIDC_ROLES"),
        ({"oidc_roles": '{"group:ml": "root"}'}, "TRD_OIDC_ROLES"),
        ({"oidc_roles": "group:ml=submit"}, "TRD_OIDC_ROLES"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, str], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named):
        Settings.from_environment(data_dir=tmp_path, **given)
