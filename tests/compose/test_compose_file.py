"""What docker-compose.yml says: services, order, secrets, ports, and that all it names exists."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from client.cli.processes import STOP_SECONDS
from contract.settings import DeploymentSettings
from service.datasets.child import REFERENCES_PROGRAM
from tests.compose.compose_file import CHECKOUT, VariableMissingError, interpolate, load, load_raw
from trd_engine.generation.vllm import runtime
from worker.settings import SHUTDOWN_MARGIN_SECONDS, WorkerSettings
from worker.trackers.backends import BACKENDS

SECRETS = {"POSTGRES_PASSWORD": "a1", "REDIS_PASSWORD": "b2", "TRD_API_KEY": "c" * 16, "TRD_KEY_PEPPER": "d" * 16}
OURS = ("migrate", "api", "worker-cpu", "worker-gpu")


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load(SECRETS)["services"]
    return found


def test_variables_are_filled_in_as_compose_does() -> None:
    given = {"A": "1", "EMPTY": ""}
    assert interpolate("${A} ${A:-2} ${B:-2} ${EMPTY:-3} ${B} $$A", given) == "1 1 2 3  $A"
    with pytest.raises(VariableMissingError, match="B: set it"):
        interpolate("${B:?set it}", given)


def test_all_services_are_there(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {"postgres", "redis", *OURS}
    assert services["worker-cpu"]["profiles"] == ["cpu"]
    assert services["worker-gpu"]["profiles"] == ["gpu"]


@pytest.mark.parametrize("name", SECRETS)
def test_each_secret_is_demanded(name: str) -> None:
    with pytest.raises(VariableMissingError, match=name):
        load({key: value for key, value in SECRETS.items() if key != name})


def test_no_secret_is_written_down(services: dict[str, dict[str, Any]]) -> None:
    for service in load_raw()["services"].values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY|PEPPER|SECRET|TOKEN", variable):
                assert value is None or re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), variable
            assert not re.search(r"://[^:/@]*:(?!\$\{)[^/@]+@", str(value)), variable
    assert [line for line in (CHECKOUT / ".env.example").read_text().splitlines() if re.match(r"\w+=.", line)] == []


def test_the_example_environment_names_every_variable() -> None:
    example = (CHECKOUT / ".env.example").read_text()
    used = set(re.findall(r"\$\{(\w+)|^ +([A-Z]\w+):$", (CHECKOUT / "docker-compose.yml").read_text(), re.MULTILINE))
    used = {name for names in used for name in names if name}
    assert used >= {"STORAGE_URL", "AWS_SECRET_ACCESS_KEY"}
    assert {name for name in used if not re.search(rf"^#?{name}=", example, re.MULTILINE)} - {"PIP_INDEX_URL"} == set()


def test_only_the_api_is_published_and_only_here(services: dict[str, dict[str, Any]]) -> None:
    assert services["api"]["ports"] == ["127.0.0.1:8000:8000"]
    assert [name for name, service in services.items() if "ports" in service] == ["api"]
    assert [name for name, service in services.items() if "network_mode" in service] == []


def test_everything_waits_for_the_migration(services: dict[str, dict[str, Any]]) -> None:
    assert services["migrate"]["command"] == ["alembic", "upgrade", "head"]
    assert services["migrate"]["restart"] == "no"
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("api", "worker-cpu", "worker-gpu"):
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_every_lasting_service_has_a_health_check_and_comes_back(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        if name != "migrate":
            assert service["healthcheck"]["test"], name
            assert service["restart"] == "unless-stopped", name


def test_state_is_kept_in_volumes(services: dict[str, dict[str, Any]]) -> None:
    mounts = {(name, mount) for name, service in services.items() for mount in service.get("volumes", [])}
    assert {mount.partition(":")[0] for _, mount in mounts} == set(load(SECRETS)["volumes"])
    assert ("postgres", "postgres:/var/lib/postgresql/data") in mounts
    assert ("redis", "redis:/data") in mounts
    for name in ("api", "worker-cpu", "worker-gpu"):
        assert (name, "storage:/data/storage") in mounts


def test_ours_have_no_rights_of_roots_and_no_log_grows_without_end(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["logging"]["options"] == {"max-size": "50m", "max-file": "5"}, name
        if name in OURS:
            assert service["init"], "what killed children leave is reaped"
            assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"]), name


def test_images_are_of_one_debian_release(services: dict[str, dict[str, Any]]) -> None:
    bases = [services[name]["image"] for name in ("postgres", "redis")]
    for dockerfile in sorted((CHECKOUT / "docker").glob("*.Dockerfile")):
        bases += [line.split()[1] for line in dockerfile.read_text().splitlines() if line.startswith("FROM ")]
    assert len(bases) == 4
    assert all(base.endswith("-bookworm") for base in bases), bases


def test_every_setting_reaches_its_process_and_only_workers_read_the_file_of_their_keys(
    services: dict[str, dict[str, Any]],
) -> None:
    """Those that the file does not name come by a process's own file."""
    files = {"api": "api.env", "worker-cpu": "worker.env", "worker-gpu": "worker.env"}
    readers = {name: service["env_file"] for name, service in services.items() if "env_file" in service}
    assert readers == {name: [{"path": file, "required": False}] for name, file in files.items()}
    for file in files.values():
        assert file in (CHECKOUT / ".gitignore").read_text().splitlines()
        assert f"!{file}" not in (CHECKOUT / ".dockerignore").read_text().splitlines()
        assert file in (CHECKOUT / ".env.example").read_text()


def test_api_and_workers_agree_on_what_both_read(services: dict[str, dict[str, Any]]) -> None:
    both = {DeploymentSettings.variable_of(field) for field in DeploymentSettings.model_fields}
    api, *workers = (
        {name: value for name, value in services[one]["environment"].items() if name in both}
        for one in ("api", "worker-cpu", "worker-gpu")
    )
    assert api.keys() >= {"TRD_QUEUES", "TRD_MODELS", "STORAGE_URL"}
    assert workers == [api, api]


def test_a_proxy_on_the_host_is_believed_and_a_stranger_is_not(services: dict[str, dict[str, Any]]) -> None:
    trusted = services["api"]["environment"]["UVICORN_FORWARDED_ALLOW_IPS"]
    seen: list[Any] = []

    async def app(scope: Any, *_: Any) -> None:
        seen.append((scope["scheme"], scope["client"][0]))

    headers = [(b"x-forwarded-proto", b"https"), (b"x-forwarded-for", b"1.1.1.1, 203.0.113.9")]
    for peer in ("172.18.0.1", "203.0.113.5"):  # the gateway of Compose's network, through which the host arrives
        scope: Any = {"type": "http", "scheme": "http", "client": (peer, 1), "headers": headers}
        asyncio.run(ProxyHeadersMiddleware(app, trusted)(scope, None, None))  # type: ignore[arg-type]
    assert seen == [("https", "203.0.113.9"), ("http", "203.0.113.5")]


def test_there_is_time_for_a_graceful_end(services: dict[str, dict[str, Any]]) -> None:
    assert services["api"]["stop_grace_period"] == "30s"
    assert services["api"]["environment"]["UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN"] == "20"
    needed = WorkerSettings.model_fields["stop_grace_seconds"].default + SHUTDOWN_MARGIN_SECONDS
    assert services["worker-gpu"]["stop_grace_period"] == "3m"
    assert needed < min(180, STOP_SECONDS), "Compose's, and that of `trd up`"


def test_cleaning_up_leaves_what_users_made() -> None:
    recipe = subprocess.run(["make", "-n", "clean"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert ".venv" in recipe.split()
    assert "data" not in recipe.split()


def test_the_gpu_worker_asks_for_gpus(services: dict[str, dict[str, Any]]) -> None:
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "1", "capabilities": ["gpu"]}
    assert services["worker-gpu"]["build"]["args"]["EXTRA"] == "gpu"
    assert services["worker-cpu"]["build"]["args"]["EXTRA"] == "cpu"
    assert "deploy" not in services["worker-cpu"]
    assert services["worker-gpu"]["shm_size"] == "8gb"
    assert services["worker-gpu"]["ulimits"] == {"memlock": -1}


def test_what_libraries_download_and_compile_is_kept(services: dict[str, dict[str, Any]]) -> None:
    dockerfile = (CHECKOUT / "docker" / "worker.Dockerfile").read_text()
    variables = dict(re.findall(r"([A-Z_]+)=(/data/\S+)", dockerfile))
    assert set(variables) == {
        "HF_HOME",
        "VLLM_CACHE_ROOT",
        "TRITON_CACHE_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "CUDA_CACHE_PATH",
        "MPLCONFIGDIR",
    }
    owned = re.search(r"install -d -o trd -g trd (.+)", dockerfile)
    assert owned is not None
    for name in ("worker-cpu", "worker-gpu"):
        mounts = {Path(mount.partition(":")[2]) for mount in services[name]["volumes"]}
        for variable, folder in variables.items():
            assert mounts & {Path(folder), *Path(folder).parents}, variable
        assert {str(mount) for mount in mounts} <= set(owned.group(1).split()), "volumes take the folder's owner"


def test_the_image_compiles_or_never_asks_for_it() -> None:
    dockerfile = (CHECKOUT / "docker" / "worker.Dockerfile").read_text()
    (installed,) = re.findall(r"apt-get install --yes --no-install-recommends (.+) \\", dockerfile)
    assert {"gcc", "g++", "libc6-dev"} <= set(installed.split()), "triton and inductor"
    assert "wget" in installed.split(), "KubeRay's probes of Ray nodes"
    assert "FROM python:" in dockerfile, "whose headers triton needs; Debian's python3-dev would be another version's"
    assert "nvcc" not in installed
    assert runtime._SETTINGS["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


@pytest.mark.slow
def test_the_smoke_command_runs_in_the_workers_image(services: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """In a folder that cannot be written, as the image's is for its user: runs are written to TRD_DATA_DIR."""
    head = (CHECKOUT / "docker-compose.yml").read_text().partition("\nname:")[0]
    (command,) = re.findall(r"docker compose run --rm --no-deps (\S+) (trd doctor)", head)
    assert command[0] in services
    assert services[command[0]]["environment"]["TRD_DATA_DIR"] == "/data"
    scripts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["trd"].partition(":")
    script = (
        f"import sys; sys.argv[:] = ['trd', 'doctor', '--quick', '--json']; from {module} import {function} as f; f()"
    )
    environment = {**os.environ, "TRD_DATA_DIR": str(tmp_path), "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd="/proc", env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {row["check"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert findings["disk"]["message"].startswith(f"{tmp_path}: ")


@pytest.mark.parametrize("name", OURS)
def test_what_an_image_is_built_from_exists_and_reaches_the_builder(
    name: str, services: dict[str, dict[str, Any]]
) -> None:
    build = services[name]["build"]
    lines = (CHECKOUT / build["dockerfile"]).read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    let_through = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied != []
    for path in copied:
        assert (CHECKOUT / path).exists(), path
        assert path in let_through, f"{path} is kept from the builder by .dockerignore"
    declared = {word.partition("=")[0] for line in lines if line.startswith("ARG ") for word in line.split()[1:2]}
    assert set(build["args"]) == declared


def test_the_image_of_the_api_holds_all_that_the_api_imports() -> None:
    assert 'RUN pip install --constraint constraints.txt --editable ".[service,otel]"' in (
        (CHECKOUT / "docker" / "service.Dockerfile").read_text().splitlines()
    )
    installed = with_dependencies("trd-service")
    distributions = packages_distributions()
    packages = ("service", "contract", "trd_data", "trd_estimate")
    plots = CHECKOUT / "trd_data" / "plots.py"  # of the report and the model cards, and needs matplotlib
    for path in sorted({path for package in packages for path in (CHECKOUT / package).rglob("*.py")} - {plots}):
        assert "trd_data.plots" not in path.read_text(encoding="utf-8")
        for module in imported_modules(path) - sys.stdlib_module_names - {*packages}:
            assert installed & set(map(canonical, distributions[module])), f"{path}: {module}"


def test_the_image_of_the_api_holds_the_programs_that_the_api_starts() -> None:
    sources = [path.read_text() for package in ("service", "trd_data") for path in (CHECKOUT / package).rglob("*.py")]
    started = {name for text in sources for name in re.findall(r'"-m", "([\w.]+)"', text)}
    assert sum(text.count('"-m"') for text in sources) == len(started) + 1, "the other is REFERENCES_PROGRAM"
    lines = (CHECKOUT / "docker" / "service.Dockerfile").read_text().splitlines()
    for program in (*started, REFERENCES_PROGRAM):
        code = f"import sys, {program}; print(*{{name.partition('.')[0] for name in sys.modules}})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
        ours = {name for name in done.stdout.split() if (CHECKOUT / name).is_dir()}
        assert {f"COPY {name} {name}" for name in ours} <= set(lines)


def imported_modules(path: Path) -> set[str]:
    """Return the top-level names that a file imports, within functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


def with_dependencies(distribution: str) -> set[str]:
    """Return what pip installs with a distribution, and with the extra `service` of ours.

    Ours is read from pyproject.toml: the installed metadata may be older.
    """
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ours = [*project["dependencies"], *extras["service"], *extras["worker"]]
    found, waiting = set(), [distribution]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        with suppress(PackageNotFoundError):  # for another system
            needed = ours if name == distribution else requires(name) or []
            waiting += [canonical(line) for line in needed if not re.search(r"extra *==", line)]
    return found


def canonical(requirement: str) -> str:
    """Return the name of a distribution in its canonical spelling."""
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def test_the_image_of_workers_holds_the_trackers_and_keeps_their_files(services: dict[str, dict[str, Any]]) -> None:
    (extras,) = re.findall(r'--editable "\.\[\$EXTRA,(.+)\]"', (CHECKOUT / "docker/worker.Dockerfile").read_text())
    without_vllm = {"trackio"}  # it needs an older pillow
    assert set(BACKENDS) - without_vllm <= set(extras.split(","))
    for name in ("worker-cpu", "worker-gpu"):
        assert "trackers:/data/trackers" in services[name]["volumes"]


@pytest.mark.parametrize("dockerfile", ["docker/service.Dockerfile", "docker/worker.Dockerfile"])
def test_images_do_not_run_as_root(dockerfile: str) -> None:
    users = [line for line in (CHECKOUT / dockerfile).read_text().splitlines() if line.startswith("USER ")]
    assert users == ["USER trd"]
