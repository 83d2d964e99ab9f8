"""What a job has left in the database and in the store, and its comparison with an undisturbed run's."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.faults.harness.deployment import Deployment

_TIMED = re.compile(r"seconds|per_second|bytes|memory")
"""Metrics that no two runs have in common."""
_RESUMABLE = ("phase", "evaluation", "checkpoint")
"""Types of events that every run has, whatever happened to it."""


@dataclass(frozen=True)
class Record:
    """What a job has left, in a form that is the same after every run of its spec."""

    metrics: dict[tuple[str, int], float | None]
    tables: dict[str, list[tuple[Any, ...]]]
    """Trajectories, evaluations, diagnoses and probe samples, without times."""
    events: frozenset[str]
    """Kinds of events, each with the step or round that it is about."""
    weights: dict[str, str]
    """The sha256 of each file of the last checkpoint's model, read from the store."""


_TABLES = {
    "trajectories": "round, position, problem_id, sample, outcome, prompt, answer, rollout, refined, rollout_correct, "
    "refined_correct, rollout_tokens, refined_tokens, step, parts_at_token, token_kl::text, token_detail::text",
    "evaluations": "step, dataset, k, num_problems, avg_at_k, avg_low, avg_high, pass_at_k, pass_low, pass_high",
    "diagnoses": "round, step",
    "probe_samples": "step, position, problem_id, prompt, completion, correct",
}


def read_record(deployment: Deployment, job_id: str) -> Record:
    """Read what the job has left, past the proxies."""
    rows = deployment.sql("SELECT name, step, value FROM metric_points WHERE job_id = %s", job_id)
    tables = {
        table: deployment.sql(f"SELECT {columns} FROM {table} WHERE job_id = %s ORDER BY 1, 2", job_id)
        for table, columns in _TABLES.items()
    }
    return Record(
        metrics={(name, step): value for name, step, value in rows if not _TIMED.search(name)},
        tables=tables,
        events=frozenset(_subject(row[0], row[2]) for row in _events(deployment, job_id) if row[0] in _RESUMABLE),
        weights=_weights(deployment, job_id),
    )


def _events(deployment: Deployment, job_id: str) -> list[tuple[str, str, dict[str, Any], datetime]]:
    query = "SELECT type, message, data, created_at FROM job_events WHERE job_id = %s ORDER BY sequence"
    return [(type_, message, data, at) for type_, message, data, at in deployment.sql(query, job_id)]


def _subject(type_: str, data: dict[str, Any]) -> str:
    if type_ == "phase":
        return f"phase {data['phase']} of round {data['round']}"
    return f"{type_} {data.get('dataset', '')} of step {data['step']}"


def _weights(deployment: Deployment, job_id: str) -> dict[str, str]:
    """Return the digests of the last checkpoint's model; each file must be what its row says."""
    rows = deployment.sql(
        "SELECT f.name, f.storage_key, f.sha256 FROM checkpoint_files f JOIN checkpoints c ON c.id = f.checkpoint_id "
        "WHERE c.job_id = %s AND c.step = (SELECT max(step) FROM checkpoints WHERE job_id = %s) "
        "AND (f.name LIKE 'model/%%' OR f.name LIKE 'state/%%')",
        job_id,
        job_id,
    )
    found = {}
    for name, key, sha256 in rows:
        content = bytes(deployment.stored.get(key).bytes())
        digest = hashlib.sha256(content).hexdigest()
        assert digest == sha256, f"{key} in the store is not what its row says"
        if name.endswith(".safetensors"):
            found[name] = digest
    assert any(name.startswith("model/") for name in found), "the last checkpoint has no model"
    return found


def differences(deployment: Deployment, job_id: str, reference: Record) -> list[str]:
    """Return what is missing, double or different, compared with the undisturbed run; none if nothing is."""
    ((status, error),) = deployment.sql("SELECT status, error_message FROM jobs WHERE id = %s", job_id)
    if status != "succeeded":
        return [f"the job is {status}: {error}"]
    record = read_record(deployment, job_id)
    problems = []
    if record.weights != reference.weights:
        problems.append("the final weights differ")
    if record.metrics != reference.metrics:
        wrong = sorted(set(record.metrics.items()) ^ set(reference.metrics.items()), key=str)
        problems.append(f"{len(wrong)} metrics are missing, additional or different: {wrong[:4]}")
    for table, rows in reference.tables.items():
        if record.tables[table] != rows:
            problems.append(f"{table} differ: {len(record.tables[table])} rows, {len(rows)} without a fault")
    if missing := reference.events - record.events:
        problems.append(f"missing events: {sorted(missing)[:4]}")
    return [*problems, *_double_events(deployment, job_id), *_strange_writes(deployment, job_id)]


def _double_events(deployment: Deployment, job_id: str) -> list[str]:
    """Return events that one attempt recorded twice, and gaps in the numbers."""
    rows = deployment.sql("SELECT sequence FROM job_events WHERE job_id = %s ORDER BY sequence", job_id)
    ((counter,),) = deployment.sql("SELECT num_events FROM jobs WHERE id = %s", job_id)
    problems = []
    if [sequence for (sequence,) in rows] != list(range(1, counter + 1)):
        problems.append("the events' numbers have a gap")
    attempt, seen = 0, Counter[str]()
    for type_, message, data, at in _events(deployment, job_id):
        attempt = data["attempt"] if type_ == "status" and "attempt" in data else attempt
        kept = {name: value for name, value in data.items() if name != "id"}
        if type_ == "phase":  # a round may enter a phase twice, but not at the same time
            kept["at"] = str(at)
        seen[f"attempt {attempt}: {type_} {message} {json.dumps(kept, sort_keys=True)}"] += 1
    problems += [f"{count} times: {event[:120]}" for event, count in seen.items() if count > 1]
    return problems


def _strange_writes(deployment: Deployment, job_id: str) -> list[str]:
    """Return steps that were written by a worker without the lease, or whose figures are not one attempt's."""
    problems = []
    writes = deployment.sql("SELECT writer, owner, status FROM written_steps WHERE job_id = %s", job_id)
    for writer, owner, status in set(writes):
        if owner is None or f":{deployment.pids[writer]}:" not in owner or status == "queued":
            problems.append(f"{writer} wrote while {owner} held the lease of the job, which was {status}")
    kept = deployment.sql(
        "SELECT step, count(DISTINCT attempt) FROM (SELECT DISTINCT ON (name, step) name, step, attempt "
        "FROM written_steps WHERE job_id = %s AND name IN ('loss', 'grad_norm', 'learning_rate') "
        "ORDER BY name, step, at DESC) AS newest GROUP BY step HAVING count(DISTINCT attempt) > 1",
        job_id,
    )
    return [*problems, *(f"step {step} has figures of {count} attempts" for step, count in kept)]
