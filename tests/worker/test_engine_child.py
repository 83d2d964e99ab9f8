"""The engine's process: what its errors are called, and what it does with a spec that it refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.worker.workbench import eventually
from trd_engine.errors import ContextTooLongError, ModelNotFoundError
from worker.engine_child import StopRequest, failure_code, fetch_model, report_failure

ROOT = Path(__file__).parents[2]


def caused_by(cause: BaseException) -> BaseException:
    error = RuntimeError("while saving")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContextTooLongError("too long"), "context_too_long"),
        (caused_by(ContextTooLongError("too long")), "context_too_long"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (ValueError("I/O error: No space left on device (os error 28)"), "disk_full"),
        (caused_by(OSError(errno.EDQUOT, "quota")), "disk_full"),
        (KeyError("surprise"), "internal_error"),
        (OSError(errno.EACCES, "denied"), "internal_error"),
    ],
)
def test_errors_have_stable_codes(error: BaseException, code: str) -> None:
    assert failure_code(error) == code


def test_of_several_processes_the_one_that_knows_the_reason_tells_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    out_dir = tmp_path / "run"
    report_failure(out_dir, RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"))
    report_failure(out_dir, ContextTooLongError("too long"))
    report_failure(out_dir, ContextTooLongError("too long"))
    (line,) = (out_dir / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["code"] == "context_too_long"


def test_a_stop_is_a_signal_or_a_file(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        by_signal = StopRequest(tmp_path)
        assert not by_signal()
        os.kill(os.getpid(), signal.SIGTERM)
        eventually(by_signal)
        by_file = StopRequest(tmp_path)
        assert not by_file()
        (tmp_path / "stop").touch()
        assert by_file()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_pinned_model_becomes_its_folder_in_the_hubs_cache(tmp_path: Path) -> None:
    """In a process of its own, with a cache laid out as the hub's client does, and no network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    script = "import sys; from worker.engine_child import fetch_model; sys.stdout.write(fetch_model(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", script, f"owner/name@{commit}"],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert Path(result.stdout) == snapshot


COMMIT = "0123456789abcdef0123456789abcdef01234567"
ON_THE_HUB = (
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model-00001-of-00001.safetensors",
    "modeling_evil.py",
    "pytorch_model.bin",
    "tokenizer.model",
    "training_args.pt",
)


class _Hub(BaseHTTPRequestHandler):
    """As much of a hub as fetching a snapshot of one model takes."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/owner/name/revision/"):
            self._answer(
                json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": n} for n in ON_THE_HUB]})
            )
        elif "/tree/" in self.path:
            files = [{"type": "file", "path": name, "size": 2, "oid": COMMIT} for name in ON_THE_HUB]
            self._answer(json.dumps(files))
        else:
            self._answer("{}")

    do_HEAD = do_GET

    def _answer(self, content: str) -> None:
        self.send_response(200)
        for name, value in (("etag", '"1"'), ("x-repo-commit", COMMIT), ("content-length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_model_without_a_revision_is_fetched_too_and_nothing_that_is_unpickled_or_run(tmp_path: Path) -> None:
    script = "import sys; from worker.engine_child import fetch_model; sys.stdout.write(fetch_model('owner/name'))"
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as hub:
        threading.Thread(target=hub.serve_forever).start()
        address = f"http://127.0.0.1:{hub.server_port}"
        result = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        hub.shutdown()
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in Path(result.stdout).iterdir()) == [
        name for name in ON_THE_HUB if not name.endswith((".bin", ".pt", ".py"))
    ]


def test_a_folder_is_left_as_it_is() -> None:
    assert fetch_model("/models/odd@name") == "/models/odd@name"


@pytest.mark.parametrize("source", ["owner/name@v1", "owner/name"])
def test_a_model_that_cannot_be_had_is_not_found(source: str) -> None:
    with pytest.raises(ModelNotFoundError, match=source):
        fetch_model(source)


@pytest.mark.slow
def test_a_refused_spec_is_a_failed_event_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"mode": "opd", "student": "/nowhere"}))
    result = subprocess.run(
        [sys.executable, "-m", "worker.engine_child", str(tmp_path)], cwd=ROOT, capture_output=True, timeout=120
    )
    assert result.returncode == 1
    last = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert (last["type"], last["code"]) == ("failed", "invalid_spec")
    assert "dataset" in last["message"]


RANK = """
import json, os, pathlib, sys, time
sys.path.insert(0, sys.argv[2])
from worker import engine_child

def scripted(folder, stop):
    (folder / f"rank{os.environ['RANK']}").touch()
    if sys.argv[3] == "fails":
        return 1 if os.environ["RANK"] == "1" else time.sleep(60) or 0
    while not stop():
        time.sleep(0.05)
    return 75

engine_child.run_attempt_folder = scripted
sys.exit(engine_child.main([sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("what", "code"), [("stops", 75), ("fails", 1)])
def test_two_ranks_under_torchrun_stop_and_fail_as_one_process_does(tmp_path: Path, what: str, code: int) -> None:
    """A real torchrun; each rank is `engine_child.main` around a scripted run."""
    from worker.engine_process import EngineProcess, engine_command

    (tmp_path / "rank.py").write_text(RANK)
    command = engine_command(tmp_path, 2)
    command[command.index("worker.engine_child") - 1 :] = [str(tmp_path / "rank.py"), str(tmp_path), str(ROOT), what]
    with EngineProcess.start(command, tmp_path, devices=2) as process:
        eventually(lambda: (tmp_path / "rank0").exists() and (tmp_path / "rank1").exists(), seconds=90)
        if what == "stops":
            process.ask_to_stop()
        eventually(lambda: process.poll() is not None, seconds=60)
        assert process.poll() == code
