"""What each process loads, and that no modules import each other in a circle. The direction of imports between packages
is import-linter's (`make check`)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

from tests.service.conftest import ADMIN_KEY

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
    """Yield the top-level names that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def loaded_by(script: str, **environment: str) -> frozenset[str]:
    """Return the top-level modules in a process that has run `script` and nothing else."""
    script += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command, env = [sys.executable, "-c", script], {**os.environ, **environment}
    result = subprocess.run(command, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return frozenset(result.stdout.split())


def test_only_child_processes_of_the_service_load_the_engine_or_what_reads_files() -> None:
    """A file may make what reads it abort, which would be in the same process as everybody's requests."""
    loaded = loaded_by("import service.app", TRD_API_KEY=ADMIN_KEY)
    assert "service" in loaded
    assert loaded & {*ENGINE_LIBRARIES, "pyarrow", "numpy"} == set()


WORKER = """
from worker.celery_app import app, slot
app.loader.import_default_modules()
assert "trd.run_job" in app.tasks
assert slot.database.engine and slot.storage
"""


def test_a_worker_that_may_take_messages_has_loaded_neither_the_engine_nor_the_web_framework(tmp_path: Path) -> None:
    loaded = loaded_by(WORKER, TRD_DATA_DIR=str(tmp_path))
    assert "worker" in loaded
    assert loaded & {*ENGINE_LIBRARIES, "service", "fastapi", "starlette", "uvicorn"} == set()


def test_the_engine_loads_neither_queue_nor_database() -> None:
    forbidden = {"contract", "service", "worker", "celery", "kombu", "sqlalchemy", "fastapi", "matplotlib"}
    assert loaded_by("import trd_engine.training.loop") & forbidden == set()


def test_the_client_loads_neither_the_service_nor_a_database() -> None:
    forbidden = {"service", "worker", "fastapi", "starlette", "celery", "sqlalchemy", "obstore", *ENGINE_LIBRARIES}
    assert loaded_by("import client") & forbidden == set()


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
            assert loaded_by(f"import {module}") & forbidden == set()


def test_estimates_need_the_standard_library_only() -> None:
    for path in python_files("trd_estimate"):
        assert set(imported_packages(path)) - {"trd_estimate", *sys.stdlib_module_names} == set(), path


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for types alone count too."""
    graph = grimp.build_graph(*(package for package in PACKAGES if package != "tests"), cache_dir=None)
    imported = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imported).prepare()  # raises CycleError, which names the circle


def test_no_module_is_a_drawer_for_the_rest() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    found = [path for path in python_files(*PACKAGES) if drawers & {path.stem, path.parent.name}]
    assert found == []


def test_no_test_file_name_is_taken_twice() -> None:
    names = [path.name for path in python_files("tests") if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))
