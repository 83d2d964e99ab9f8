"""A pool of two real vLLM servers on a CPU: versions of adapters, a whole run, a killed server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from peft import LoraConfig, PeftModel, get_peft_model

from benchmarks import vllm_server
from tests.trd_engine.generation.random_models import (
    GREEDY,
    SAMPLED,
    assert_sampled_by,
    ids,
    load_model,
    make_requests,
    write_adapter,
)
from tests.trd_engine.tiny_runs import MODELS, events, metric, spec, write_data
from trd_engine.config import RunConfig, SamplerPoolConfig, parse_config
from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.generation.served.adapters import NUM_KEPT, packed_adapter
from trd_engine.generation.served.generator import PoolGenerator
from trd_engine.models.loading import load_tokenizer
from trd_engine.runtime.distributed import ALONE
from trd_engine.runtime.errors import SamplersRefusedError, SamplersUnreachableError
from trd_engine.training.loop import distil

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]

KEY = "pool-key"
STUDENT = MODELS / "tiny-student"


@dataclass
class Pool:
    servers: Sequence[subprocess.Popen[bytes]]
    ports: Sequence[int]

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}/v1" for port in self.ports]

    def generator(self, folder: Path, **changes: Any) -> PoolGenerator:
        given = {**self.as_spec(), **changes}
        return PoolGenerator(SamplerPoolConfig.model_validate(given), folder, load_tokenizer(str(STUDENT)), ALONE)

    def as_spec(self) -> dict[str, Any]:
        return {
            "name": "pair",
            "base_url": self.urls[0],
            "replicas": self.urls[1:],
            "network": "loopback",
            "api_key_env": "POOL_API_KEY",
            "timeout_seconds": 120,
        }


@contextmanager
def sample_server(model: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a server; the caller waits until it answers. Its log is shown if anything fails."""
    port = vllm_server.free_port()
    command = [sys.executable, "-m", "trd_engine", "sample-server", str(model), "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16"]
    command += ["--max-lora-rank", "8", "--kv-cache-memory-bytes", str(2**28)]
    environment = os.environ | vllm_server.SETTINGS | {"VLLM_API_KEY": KEY}
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield server, port
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-5000:])
            raise
        finally:
            kill(server)


def kill(server: subprocess.Popen[bytes]) -> None:
    """End the server with its engine's process."""
    try:
        os.killpg(server.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    server.wait()


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pytest.importorskip("vllm", exc_type=ImportError)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("POOL_API_KEY", KEY)
        started = [stack.enter_context(sample_server(STUDENT)) for _ in range(2)]
        for server, port in started:
            assert vllm_server.is_up(server, port)
        yield Pool([server for server, _ in started], [port for _, port in started])


def models_of(url: str) -> list[str]:
    document = httpx.get(f"{url}/models", headers={"Authorization": f"Bearer {KEY}"}).json()
    return [model["id"] for model in document["data"]]


def test_each_version_answers_as_a_local_engine_does(pool: Pool, tmp_path: Path) -> None:
    """Ids and log-probabilities, at temperature 0; with seeds, twice the same."""
    requests, tokenizer = make_requests(12), load_tokenizer(str(STUDENT))
    generator, found = pool.generator(STUDENT), []
    adapters = [None, *(write_adapter(STUDENT, tmp_path / str(seed), seed) for seed in (1, 2)), None]
    for folder in adapters:
        generator.use_adapter(folder)
        model = load_model(STUDENT)
        module = model if folder is None else PeftModel.from_pretrained(model, str(folder)).eval()
        served = generator.generate(requests, GREEDY, with_logprobs=True)
        local = TransformersGenerator(module, tokenizer).generate(requests, GREEDY, with_logprobs=True)
        assert [(c.token_ids, c.finish_reason) for c in served] == [(c.token_ids, c.finish_reason) for c in local]
        assert_sampled_by(module, requests, served)
        found.append(served)
    sampled = generator.generate(requests, SAMPLED, with_logprobs=True)
    assert_sampled_by(module, requests, sampled)
    assert ids(generator.generate(requests, SAMPLED)) == ids(sampled)
    assert found[0] == found[3]
    assert found[0] != found[1] != found[2] != found[0]
    assert [len(models_of(url)) for url in pool.urls] == [3, 3]  # both servers took part


def test_a_server_keeps_a_few_versions_and_gets_dropped_ones_again(pool: Pool, tmp_path: Path) -> None:
    generator, requests, found = pool.generator(STUDENT), make_requests(4), []
    folders = [write_adapter(STUDENT, tmp_path / str(seed), seed) for seed in range(20, 21 + NUM_KEPT)]
    for folder in [*folders, folders[0]]:
        generator.use_adapter(folder)
        found.append(generator.generate(requests, GREEDY))
    assert found[-1] == found[0]
    assert all(len(models_of(url)) == 1 + NUM_KEPT for url in pool.urls)


def test_what_is_no_version_of_these_weights_is_refused(pool: Pool, other_model_folder: Path, tmp_path: Path) -> None:
    good = write_adapter(STUDENT, tmp_path / "good", 1)
    base = models_of(pool.urls[0])[0]
    name, upload = packed_adapter(base, good)
    key = {"Authorization": f"Bearer {KEY}"}
    url = f"{pool.urls[0]}/{upload.path}"
    assert httpx.put(url, content=upload.content).status_code == 401
    wrong = httpx.put(url, content=upload.content[:-1] + b"?", headers=key)
    assert (wrong.status_code, wrong.json()["message"]) == (400, "the content is not that of the name")
    assert httpx.put(url, content=b"", headers=key).status_code == 400
    by_path = {"lora_name": name, "lora_path": str(good)}
    assert httpx.post(f"{pool.urls[0]}/load_lora_adapter", json=by_path, headers=key).status_code == 404
    with pytest.raises(SamplersRefusedError, match="of 2, refused a request with status 404"):
        pool.generator(other_model_folder).generate(make_requests(1), GREEDY)
    generator = pool.generator(other_model_folder)
    generator.use_adapter(write_adapter(other_model_folder, tmp_path / "other", 1))
    with pytest.raises(SamplersRefusedError, match=r"status 400: .*the adapter belongs to weights"):
        generator.generate(make_requests(1), GREEDY)
    generator = pool.generator(STUDENT)
    generator.use_adapter(write_large_adapter(tmp_path / "large"))
    with pytest.raises(SamplersRefusedError, match=r"status 400: .*rank"):
        generator.generate(make_requests(1), GREEDY)
    generator.use_adapter(good)
    assert len(generator.generate(make_requests(4), GREEDY)) == 4


def write_large_adapter(folder: Path) -> Path:
    """Write an adapter of a larger rank than the servers have room for."""
    settings = LoraConfig(r=16, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(STUDENT), settings).save_pretrained(str(folder))
    return folder


def run_spec(data: Path, **sampling: Any) -> RunConfig:
    """Return a spec that samples greedily, so that every engine gives the same trajectories; the student refines by its
    step-0 weights."""
    document = spec(
        data,
        teacher=None,
        rounds=2,
        lora={"rank": 4, "alpha": 8},
        loss={},
        sampling={"temperature": 0, "max_prompt_tokens": 64, "max_new_tokens": 24, **sampling},
        refine={"max_prompt_tokens": 192, "max_new_tokens": 24},
        optim={"learning_rate": 1e-2, "batch_size": 8},
        diagnosis={"num_trajectories": 0},
    )
    return parse_config(document)


def texts_of(out_dir: Path) -> list[tuple[str, str]]:
    files = sorted(out_dir.glob("rounds/*/trajectories.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [(row["rollout"], row["refined"]) for row in rows]


def test_a_run_samples_from_its_newest_weights_and_survives_a_killed_server(pool: Pool, tmp_path: Path) -> None:
    data = write_data(tmp_path, train=16, heldout=4)
    local, served = tmp_path / "local", tmp_path / "served"
    distil(run_spec(data, engine="transformers"), local)

    def kill_one(event: dict[str, Any]) -> None:
        if event["type"] == "metrics" and event["step"] == 1:
            kill(pool.servers[1])

    distil(run_spec(data, pool=pool.as_spec()), served, on_event=kill_one)
    assert pool.servers[1].poll() is not None
    assert max(metric(served, "sampler_gap")) < 1e-3
    assert texts_of(served) == texts_of(local)
    assert len(texts_of(served)) == 16
    assert metric(served, "loss") == pytest.approx(metric(local, "loss"), rel=1e-4)
    (chosen,) = [event for event in events(served, "notice") if event["code"] == "engine_chosen"]
    assert chosen["message"] == "sampling with the servers of pool pair (2 servers): requested by the spec"
    kill(pool.servers[0])
    with pytest.raises(SamplersUnreachableError, match="sampler pool pair gave no answer in 2 tries"):
        pool.generator(STUDENT, max_tries=2).generate(make_requests(2), GREEDY)
