from __future__ import annotations

import subprocess
import sys
from typing import Any

from fastapi.testclient import TestClient

from service.auth import PUBLIC_PATHS


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
    assert schemas["JobSpec"]["properties"]["rounds"]["description"].startswith("Collections of rollouts")
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


def test_the_service_never_loads_torch() -> None:
    heavy = ("torch", "transformers", "vllm", "trd_engine")
    script = f"import sys, service.app\nprint([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "[]"
