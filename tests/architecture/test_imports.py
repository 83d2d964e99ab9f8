"""What each process loads. The direction of imports between packages is import-linter's (`make check`)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGES = (
    "client",
    "contract",
    "service",
    "worker",
    "trd_data",
    "trd_estimate",
    "trd_engine",
    "migrations",
    "testbed",
    "examples",
    "benchmarks",
    "tests",
)
ENGINE_LIBRARIES = {"torch", "transformers", "vllm", "peft", "datasets", "trd_engine"}


def python_files(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((CHECKOUT / package).rglob("*.py"))]


def imported_packages(path: Path) -> Iterator[str]:
    """Top-level names that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@cache
def loaded_by(module: str) -> frozenset[str]:
    """Top-level modules in a process that has imported `module` and nothing else."""
    script = f"import sys, {module}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], cwd="/", capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return frozenset(result.stdout.split())


@pytest.mark.parametrize("module", ["service.app", "worker.celery_app", "worker.supervisor"])
def test_only_the_child_process_loads_the_engine(module: str) -> None:
    loaded = loaded_by(module)
    assert module.partition(".")[0] in loaded
    assert loaded & ENGINE_LIBRARIES == set()


def test_the_worker_does_not_load_the_web_framework() -> None:
    assert loaded_by("worker.celery_app") & {"service", "fastapi", "starlette", "uvicorn"} == set()


def test_the_engine_loads_neither_queue_nor_database() -> None:
    forbidden = {"contract", "service", "worker", "celery", "kombu", "sqlalchemy", "fastapi", "matplotlib"}
    assert loaded_by("trd_engine.training.loop") & forbidden == set()


def test_the_client_loads_neither_the_service_nor_a_database() -> None:
    forbidden = {"service", "worker", "fastapi", "starlette", "celery", "sqlalchemy", "obstore", *ENGINE_LIBRARIES}
    assert loaded_by("client") & forbidden == set()


def test_the_contract_needs_pydantic_and_sqlalchemy_only_its_storage_obstore_and_its_tracing_opentelemetry() -> None:
    allowed = {"contract", "pydantic", "pydantic_core", "pydantic_settings", "sqlalchemy", *sys.stdlib_module_names}
    for path in python_files("contract"):
        extra = {"storage.py": {"obstore"}, "tracing.py": {"opentelemetry"}}.get(path.name, set())
        assert set(imported_packages(path)) - allowed == extra, path


def test_the_data_package_loads_no_other_of_ours_and_no_tensor_library() -> None:
    forbidden = {"contract", "service", "worker", "fastapi", "sqlalchemy", "pyarrow", "matplotlib", *ENGINE_LIBRARIES}
    for path in python_files("trd_data"):
        module = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
        allowed = {"trd_data", "jinja2", "tokenizers", "pyarrow", *sys.stdlib_module_names}
        extra = {"matplotlib"} if path.name == "plots.py" else set()  # imported where a plot is drawn
        assert set(imported_packages(path)) - allowed == extra, path
        if module in ("trd_data.prompts", "trd_data.parquet_child"):  # together they import the others
            assert loaded_by(module) & forbidden == set()


def test_estimates_need_the_standard_library_only() -> None:
    for path in python_files("trd_estimate"):
        assert set(imported_packages(path)) - {"trd_estimate", *sys.stdlib_module_names} == set(), path


def test_no_module_is_a_drawer_for_the_rest() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    found = [path for path in python_files(*PACKAGES) if drawers & {path.stem, path.parent.name}]
    assert found == []


def test_no_test_file_name_is_taken_twice() -> None:
    names = [path.name for path in python_files("tests") if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))
