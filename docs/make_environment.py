"""``python -m docs.make_environment`` writes docs/environment.md: all environment variables, from the settings classes.

A test compares the file with this output, and its names with docker-compose.yml and the sources.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from client.settings import ClientSettings
from contract.settings import (
    PACKAGES_DIR,
    DatabaseSettings,
    DataFolderSettings,
    DeploymentSettings,
    EnvironmentSettings,
)
from service.settings import MAX_LIMIT, Settings
from worker.settings import WorkerSettings

TARGET = Path(__file__).with_name("environment.md")

SECTIONS: dict[str, tuple[type[EnvironmentSettings], type[EnvironmentSettings] | None]] = {
    "Every process": (DataFolderSettings, None),
    "API, workers and migrations": (DatabaseSettings, DataFolderSettings),
    "API and workers": (DeploymentSettings, DatabaseSettings),
    "API": (Settings, DeploymentSettings),
    "Workers": (WorkerSettings, DeploymentSettings),
    "Client and `trd`": (ClientSettings, DataFolderSettings),
}
"""Title, settings class, and the base class whose fields an earlier section lists."""

OTHER = {
    "S3-compatible store": {
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN": "Credentials of the API and the workers, if "
        "`STORAGE_URL` names a bucket. If unset, those of the machine's or container's role are used.",
        "AWS_REGION": "Region of the bucket. Default: us-east-1.",
        "AWS_ENDPOINT_URL": "The store, if it is not Amazon's, as `https://s3.example.com`.",
        "AWS_ALLOW_HTTP": "`true` allows an `AWS_ENDPOINT_URL` without TLS.",
        "AWS_TIMEOUT": "Longest duration of one request, which carries at most 32 MiB, as `60s`. Default: 30s.",
    },
    "Traces of the API and the workers": {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "Collector of OpenTelemetry spans (OTLP over HTTP), as `http://collector:4318`. "
        "If unset, nothing is sent. [operations.md](operations.md#traces) names further variables.",
        "OTEL_EXPORTER_OTLP_HEADERS": "Headers that the collector asks for, as `name=value,…`; logs redact the values.",
        "OTEL_TRACES_EXPORTER, OTEL_SDK_DISABLED": "`none`, or `true`, sends nothing although a collector is named.",
    },
    "Engine": {
        "…_API_KEY, …_TOKEN, …_SECRET": "Keys of served teachers and sampler pools, under the names that their "
        "`api_key_env` gives. Set them for the workers only; logs redact variables of such names.",
        "VLLM_API_KEY": "vLLM's own: the key that a sample server demands (`python -m trd_engine sample-server`), for "
        "requests and for adapters.",
        "HF_HOME, HF_TOKEN": "Where Hugging Face's libraries keep downloads, and the token for gated models.",
        "HF_HUB_OFFLINE": "`1` lets Hugging Face's libraries use downloaded files only.",
        "HF_ENDPOINT": "Another Hugging Face hub than https://huggingface.co, for downloads and pushes.",
        "MLFLOW_TRACKING_URI": "The MLflow server that jobs may report to.",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT": "MLflow's own retries and seconds of one "
        "request. Default: 1 and 20, since the tracker tries again by itself.",
        "TRACKIO_DIR": "Where trackio keeps its runs. Default: `trackers/trackio` in the data folder.",
        "CUDA_VISIBLE_DEVICES": "The GPUs of a worker. Each process of a job takes its part of them.",
        "CUBLAS_WORKSPACE_CONFIG": "Memory of cuBLAS, for reproducible products on a GPU; `:4096:8` if it is unset.",
        "OMP_NUM_THREADS": "Threads of the CPU kernels in each process. torchrun sets 1 if it is unset.",
        "VLLM_CPU_KVCACHE_SPACE, VLLM_LOGGING_LEVEL": "vLLM's own variables; a value given here is kept.",
        "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH": "Ray's own: the token of the cluster that RAY_ADDRESS names, or "
        "its file. Set one for the workers and on every node; the engine does not get it.",
        "RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_WORLD_SIZE, TORCHELASTIC_RUN_ID": "Set by torchrun "
        "in each process. Do not set them yourself.",
    },
    "Docker Compose": {
        "POSTGRES_PASSWORD, REDIS_PASSWORD": "Passwords of the servers. They stand in URLs: letters and digits only.",
        "TRD_PORT": "Port of the API on 127.0.0.1 of the host. Default: 8000.",
        "TRD_GPUS": "GPUs of the worker of profile `gpu`. Default: 1.",
        "UVICORN_HOST, UVICORN_PORT, UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN": "uvicorn's variables, set for the API.",
        "UVICORN_FORWARDED_ALLOW_IPS": "uvicorn's own: addresses of proxies whose `X-Forwarded-` headers count. Set to "
        "those of Docker's networks.",
        "VLLM_CACHE_ROOT, TRITON_CACHE_DIR, TORCHINDUCTOR_CACHE_DIR, CUDA_CACHE_PATH, MPLCONFIGDIR": "Where vLLM, "
        "Triton, torch, CUDA and matplotlib keep what they compile; the worker's image sets them to a volume.",
        "PIP_INDEX_URL, PIP_EXTRA_INDEX_URL": "Package indexes while the images are built. The CPU worker needs the "
        "index of PyTorch's CPU wheels.",
    },
}
"""Variables that no settings class reads: of the engine's process, of libraries, and of docker-compose.yml."""

HEAD = """# Environment variables

Written by `make environment-docs` from the settings classes; do not edit. An empty variable counts as unset. White
space around a value is not part of it, and quotes around it are refused. A wrong value stops the process at its start
with a message that names the variable. Without any, everything is in `./data`.
"""


def document() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for title, (settings, listed_before) in SECTIONS.items():
        known = listed_before.model_fields if listed_before else {}
        fields = {name: field for name, field in settings.model_fields.items() if name not in known}
        rows = [_row(settings.variable_of(name), field) for name, field in fields.items()]
        parts.append(
            f"## {title}\n\n| variable | default | bounds | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    for title, variables in OTHER.items():
        rows = [f"| {_code(names)} | {meaning} |" for names, meaning in variables.items()]
        parts.append(f"## {title}\n\n| variable | meaning |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(variable: str, field: FieldInfo) -> str:
    assert field.description, f"{variable} has no docstring"
    meaning = " ".join(field.description.replace("``", "`").replace("|", "\\|").split())
    return f"| `{variable}` | {_default(field)} | {_bounds(field)} | {meaning} |"


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if field.default_factory is not None or value is None:
        return ""
    if isinstance(value, tuple | frozenset | dict):
        value = ",".join(map(str, value))
    shown = f"{value:g}" if isinstance(value, float) else str(value).removeprefix(f"{PACKAGES_DIR}/")
    return f"`{shown}`" if shown else ""


def _bounds(field: FieldInfo) -> str:
    signs = {
        "ge": "≥ {}",
        "gt": "> {}",
        "le": "≤ {}",
        "lt": "< {}",
        "min_length": "length ≥ {}",
        "max_length": "length ≤ {}",
    }
    # A bound of `Annotated[str, …] | None` is in the metadata of the union's first member; a dict's is its keys', a
    # set's its members'.
    members = get_args(field.annotation) if get_origin(field.annotation) not in (dict, frozenset) else ()
    constraints = [*field.metadata, *members]
    inner = [bound for part in constraints for bound in getattr(part, "__metadata__", (part,))]
    flat = [bound for part in inner for bound in getattr(part, "metadata", (part,))]
    found = [(text, getattr(bound, name)) for bound in flat for name, text in signs.items() if hasattr(bound, name)]
    return ", ".join(text.format(value) for text, value in found if value != MAX_LIMIT)


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
