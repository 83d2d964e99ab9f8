from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator

from contract.settings import PACKAGES_DIR
from service.app import create_app
from service.auth import PUBLIC_PATHS
from service.settings import Settings


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        found = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return found.union(*map(references, node.values()))
    if isinstance(node, list):
        return set().union(*map(references, node))
    return set()


def test_the_document_is_complete(shared_client: TestClient) -> None:
    document = shared_client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for reference in references(document):
        assert reference.rpartition("/")[2] in schemas, reference
    assert {"JobSpec", "NewKey", "JobView", "Error"} <= set(schemas)
    assert "HTTPValidationError" not in schemas
    assert schemas["JobSpec"]["properties"]["rounds"]["description"].startswith("Number of rounds")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"]
            assert "4XX" in operation["responses"], path
            assert bool(operation["security"]) == (path not in PUBLIC_PATHS)
    body = document["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/JobSpec"}


def test_operations_have_names_of_their_own(shared_client: TestClient) -> None:
    document = shared_client.get("/openapi.json").json()
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (where, media type, content) of the body and of every answer."""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield "request", media_type, content
    for status, response in operation["responses"].items():
        for media_type, content in response.get("content", {}).items():
            yield status, media_type, content


def test_every_body_and_answer_has_an_example_that_fits_it(shared_client: TestClient) -> None:
    document = shared_client.get("/openapi.json").json()
    num_examples = 0
    for name, operation in operations(document):
        documented = [c for c in contents(operation) if c[0] not in ("4XX", "5XX", "503")]
        examples = [(w, m, c) for w, m, c in documented if "example" in c]
        # One of several media types of the same thing is enough.
        assert {w for w, _, _ in examples} == {w for w, _, _ in documented}, name
        for where, media_type, content in examples:
            schema = {**content["schema"], "components": document["components"]}
            faults = [error.message for error in Draft202012Validator(schema).iter_errors(content["example"])]
            assert not faults, (name, where, media_type, faults[:2])
            num_examples += 1
    assert num_examples > 200


def test_every_operation_says_how_it_refuses(shared_client: TestClient) -> None:
    for name, operation in operations(shared_client.get("/openapi.json").json()):
        method, path = name.split(" ")
        statuses = set(operation["responses"])
        if path in PUBLIC_PATHS:
            continue
        assert {"401", "429"} <= statuses, name
        assert ("403" in statuses) == (method != "GET" or path.startswith(("/keys", "/audit", "/retention"))), name
        assert ("404" in statuses) == ("{" in path or path == "/view"), name
        assert ("415" in statuses) == ("requestBody" in operation), name


def test_the_committed_document_is_this_one() -> None:
    """A change of the API shows in the diff. After a wanted one: make openapi."""
    served = create_app(Settings.from_environment()).openapi()
    committed = json.loads((PACKAGES_DIR / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert committed == served, "the API is not what docs/openapi.json says; run: make openapi"
