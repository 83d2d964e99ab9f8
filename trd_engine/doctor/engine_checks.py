"""Checks of the engine's own code on this machine: loss, packing, verifier, sampling, sync, and a step."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from trd_engine.config import parse_config
from trd_engine.distillation.losses.divergence import Divergence, token_divergence
from trd_engine.distillation.losses.linear_divergence import Projection, linear_divergence
from trd_engine.distillation.losses.row_kernels import kernel_fault, uses_kernels
from trd_engine.doctor.findings import FailedError, Machine, NotTriedError
from trd_engine.models.attention.packing import packing_of, read_row
from trd_engine.models.folders import MODEL_FOLDER, with_local_models
from trd_engine.runtime.errors import SamplerDriftError
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.hardware import choose_compute_dtype, is_out_of_memory
from trd_engine.tasks.registry import load_task
from trd_engine.training.checkpoints.checkpoint import checkpoint_folder
from trd_engine.training.model_setup import load_tokenizers
from trd_engine.training.session import Session
from trd_engine.training.setup import open_session
from trd_engine.types import Problem

GIB = 2**30
_MAX_LOSS_ERROR = 1e-4
"""Relative, in fp32; products in TF32 would be off by 1e-3."""
_MAX_PACKING_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.05}
_DEVICE_ASSERT = """
import torch
try:
    torch.zeros(4, device="cuda")[torch.full((2,), 9, device="cuda")].sum().item()
except Exception as error:
    from trd_engine.runtime.hardware import is_out_of_memory
    print(is_out_of_memory(error), "device-side assert" in str(error))
"""
_SYNC_NOISE = 0.2
"""Standard deviation of what the check of the sync adds to the adapter. Log-probabilities move by 0.25 nats in the
mean; the probe of the sampler allows 0.1 in bf16."""


def check_spec(machine: Machine) -> str:
    """Find the models of a spec, and check that their tokenizers agree and the contexts fit."""
    if machine.config is None:
        raise NotTriedError("no spec was given")
    config = with_local_models(machine.config)
    load_tokenizers(config)
    load_task(config.task)
    return f"student {machine.config.student} and teacher {machine.config.teacher or 'itself'} fit each other"


def check_loss(machine: Machine) -> str:
    """Compare every divergence of the fused loss and its gradient with plain operations in float64. On a GPU, Triton's
    kernels must run: the loss is right without them, but slower, and only a warning in the log would say so."""
    if machine.is_gpu and (fault := kernel_fault(machine.device)):
        remedy = "install triton, gcc and Python's headers, or report it, with your versions"
        raise FailedError(f"the loss is computed by plain operations, because Triton {fault}", remedy)
    worst = 0.0
    torch.manual_seed(0)
    hidden, head, teacher_hidden, teacher_head = (
        torch.randn(*shape, device=machine.device) for shape in ((65, 32), (997, 32), (65, 48), (997, 48))
    )
    token_ids = torch.arange(65, device=machine.device)
    kinds = itertools.product(("forward_kl", "reverse_kl", "jsd"), ("full", "top_k", "sampled"), (0.0, 0.5))
    for kind, support, clip in kinds:
        if kind == "jsd" and support != "full":
            continue
        divergence = Divergence(kind, support, teacher_top_k=32, token_clip=clip)  # type: ignore[arg-type]
        found = hidden.clone().requires_grad_()
        student, teacher = Projection(found, head), Projection(teacher_hidden, teacher_head)
        loss = linear_divergence(student, teacher, divergence, token_ids_N=token_ids)[0]
        loss.backward()
        exact = hidden.double().requires_grad_()
        teacher_logits = teacher_hidden.double() @ teacher_head.double().T
        expected = token_divergence(exact @ head.double().T, teacher_logits, divergence, token_ids_N=token_ids).mean()
        expected.backward()
        assert found.grad is not None
        assert exact.grad is not None
        pairs = ((loss.detach(), expected.detach()), (found.grad, exact.grad))
        worst = max(worst, *(float((a.double() - b).norm() / b.norm().clamp_min(1e-12)) for a, b in pairs))
    if not worst <= _MAX_LOSS_ERROR:
        raise FailedError(f"the loss differs from float64 by {worst:.1e}", "report it, with your versions")
    by = "Triton's kernels" if uses_kernels(machine.device) else "plain operations"
    return f"largest relative error against float64, by {by}: {worst:.1e}"


def check_packing(machine: Machine) -> str:
    """Check that sequences that share a row are read as if alone, and do not change with a neighbour."""
    dtype = choose_compute_dtype("auto", machine.device)
    model: nn.Module = _model(seed=0)  # as a module: the type of transformers' own `to` is not known
    model = model.to(machine.device, dtype).eval()
    lengths = (37, 21)
    ids = torch.randint(2, 250, (1, sum(lengths)), device=machine.device)
    positions = torch.cat([torch.arange(n, device=machine.device) for n in lengths]).unsqueeze(0)
    with torch.no_grad():
        kind = packing_of(model).kind
        packed = read_row(model, ids, positions, lengths)
        alone = read_row(model, ids[:, :37], positions[:, :37], (37,))
        changed = ids.clone()
        changed[:, 37:] = 3
        leak = (read_row(model, changed, positions, lengths)[:37] - packed[:37]).abs().max()
    error = float((packed[:37] - alone).float().norm() / alone.float().norm())
    if float(leak) > 0 or not error <= _MAX_PACKING_ERROR[dtype]:
        raise FailedError(
            f"packed rows: error {error:.1e}, leak {float(leak):.1e} ({kind})", "report it, with versions"
        )
    return f"{kind} in {str(dtype).removeprefix('torch.')}: error {error:.1e}, nothing leaks between sequences"


def check_verifier(machine: Machine) -> str:
    """Judge right and wrong answers in the confined processes of runs."""
    task, problem = load_task("math"), Problem("1", "What is one half?", "1/2")
    right, wrong = task.verify_many([(problem, r"\boxed{0.5}"), (problem, r"\boxed{0.51}")])
    if not right.correct or wrong.correct:
        raise FailedError(f"0.5 and 0.51 against 1/2: {right.detail}, {wrong.detail}", "report it")
    return "0.5 is right and 0.51 is wrong for 1/2"


def check_out_of_memory(machine: Machine) -> str:
    """Check that an allocation that is too large is recognised."""
    try:
        torch.empty(2**50, dtype=torch.uint8, device=machine.device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return "an allocation of a petabyte is reported as out of memory"
        raise FailedError(f"it is not recognised: {error}"[:300], "report it, with your versions") from error
    raise FailedError("a petabyte was allocated", "set vm.overcommit_memory to 0")


def check_device_assert(machine: Machine) -> str:
    """Check that an index out of range on the GPU is reported as a fault of the code, and not as missing memory."""
    machine.require_gpu()
    done = subprocess.run(
        [sys.executable, "-c", _DEVICE_ASSERT], capture_output=True, text=True, timeout=120, check=False
    )
    if done.stdout.split() != ["False", "True"]:
        raise FailedError(f"{done.stdout} {done.stderr[-300:]}".strip(), "report it, with your versions")
    return "a device-side assert is named, and not taken for memory"


def check_run(machine: Machine) -> str:
    """Do a round of a tiny run: sampling, sync of new weights, sleep, an update."""
    with _tiny_session(machine) as session:
        gap = session.monitor.probe_sampler()
        trajectories = session.collector.collect(session.request_round())
        asleep = _freed_by_sleep(session, machine)
        session.train_step(trajectories)
        after = session.monitor.probe_sampler()
    return f"sampler and trainer differ by {gap:.1e} nats, after a step by {after:.1e}; {asleep}"


def check_sync(machine: Machine) -> str:
    """Check that new weights reach the sampler, and that weights that do not are found."""
    with _tiny_session(machine) as session:
        samplers, model = session.collector.samplers, session.models.student
        if samplers.weights is None:
            raise NotTriedError("the sampler uses the trained module itself: there is nothing to sync")
        session.monitor.probe_sampler()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(torch.randn_like(parameter) * _SYNC_NOISE)
        try:
            gap = session.monitor.probe_sampler()
        except SamplerDriftError:
            samplers.student_changed()
            gap = session.monitor.probe_sampler()
            return f"stale weights are found; after the sync the difference is {gap:.1e} nats"
    raise FailedError(f"weights that were not synced went unnoticed (difference {gap:.1e} nats)", "report it")


def _freed_by_sleep(session: Session, machine: Machine) -> str:
    if session.collector.samplers.weights is None:
        return "the sampler uses the trained module itself, and never sleeps"
    if not machine.is_gpu:
        session.collector.samplers.sleep()
        return "nothing sleeps on a CPU"
    before = torch.cuda.mem_get_info(machine.device)[0]
    session.collector.samplers.sleep()
    freed = torch.cuda.mem_get_info(machine.device)[0] - before
    if freed <= 0:
        raise FailedError(
            "a sleeping engine freed nothing", "set sampling.placement = separate, or engine transformers"
        )
    return f"sleep freed {freed / GIB:.1f} GiB"


def _model(seed: int) -> Qwen3ForCausalLM:
    """Make a random model with 256 tokens, grouped heads, and heads of a size that every kernel has."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


def write_random_model(folder: Path, seed: int) -> str:
    """Write a random model of 256 words with its tokenizer; return its folder."""
    _model(seed).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(256)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1", pad_token="w0")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}w3"
    tokenizer.save_pretrained(folder)
    return str(folder)


def check_sharding(machine: Machine) -> str:
    """Take a step of a model that all GPUs divide, and put its weights together in a checkpoint."""
    machine.require_gpu()
    count = torch.cuda.device_count()
    if count < 2:
        raise NotTriedError("there is one GPU")
    return run_divided("--standalone", num_devices=count)


def run_divided(*launcher_options: str, num_devices: int) -> str:
    """Run one step with a process for each device, and compare the shapes of the weights that it saves."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        document = _tiny_spec(folder) | {"lora": None, "devices": num_devices}
        document["sampling"]["engine"] = "transformers"
        document["optim"]["max_steps"] = 1
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, _TINY_ROWS)), encoding="utf-8")
        document["dataset"] = {"path": str(folder / "rows.jsonl")}
        (folder / "spec.json").write_text(json.dumps(document), encoding="utf-8")
        launcher = ["-m", "torch.distributed.run", *launcher_options, f"--nproc-per-node={num_devices}"]
        run = ["-m", "trd_engine", "run", str(folder / "spec.json"), "--out", str(folder / "out")]
        done = subprocess.run(
            [sys.executable, *launcher, *run], capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode != 0:
            raise FailedError(
                f"the processes failed: {done.stderr[-600:]}", "see the message; try devices = 1 meanwhile"
            )
        saved = load_file(checkpoint_folder(folder / "out", 1) / MODEL_FOLDER / "model.safetensors")
        whole = load_file(folder / "student" / "model.safetensors")
    if {name: x.shape for name, x in saved.items()} != {name: x.shape for name, x in whole.items()}:
        raise FailedError("the weights that were put together are not whole", "report it, with your versions")
    return f"{num_devices} processes took a step, and put {len(saved)} tensors together"


_TINY_ROWS = [{"problem": f"w{i} w{i + 1} w{i + 2}", "answer": f"w{i}"} for i in range(10, 14)]


def _tiny_spec(folder: Path) -> dict[str, Any]:
    """Return the spec of a run of two random models, which are written to `folder`."""
    return {
        "mode": "trd",
        "student": write_random_model(folder / "student", 1),
        "teacher": write_random_model(folder / "teacher", 2),
        "task": "exact",
        "lora": {"rank": 8, "alpha": 16},
        "prompts": {"solve": "{problem}", "refine": "{problem} {attempt}"},
        "sampling": {"max_prompt_tokens": 64, "max_new_tokens": 32},
        "refine": {"max_prompt_tokens": 128, "max_new_tokens": 32},
        "optim": {"batch_size": 4},
        "evaluation": {"holdout": 0},
        "diagnosis": {"num_trajectories": 0},
    }


@contextmanager
def _tiny_session(machine: Machine) -> Iterator[Session]:
    """Open a run of two random models, with the engine and the device that jobs would take."""
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        document = _tiny_spec(folder) | {"device": str(machine.device)}
        if machine.is_gpu:
            document["sampling"]["gpu_memory_utilization"] = 0.3
        with Reporter(folder / "run") as reporter:
            session = open_session(parse_config(document), reporter, problems=_TINY_ROWS)
            try:
                yield session
            finally:
                session.close()
