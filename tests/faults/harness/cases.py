"""The table of faults: each is done to a job that runs, and the job must end as if nothing had happened."""

from __future__ import annotations

from tests.faults.harness.harms import machines, processes, servers, store
from tests.faults.harness.scene import Case

CASES = [
    Case("the engine's process is killed with signal 9", processes.kill_child),
    Case("the worker is killed with signal 9", processes.kill_supervisor),
    Case("the worker and its engine are killed at once", processes.kill_group, in_ci=True),
    Case("the API is killed while a job runs", processes.kill_api),
    Case(
        "the API is killed while it creates the job, and asked again",
        lambda _: None,
        before=processes.kill_api_and_redo,
    ),
    Case(
        "the worker is frozen beyond its lease, and continues beside the next attempt",
        processes.freeze_supervisor,
        in_ci=True,
    ),
    Case("the worker and its engine are frozen beyond the lease, and continue", processes.freeze_group),
    Case("Redis is killed before the job is submitted", lambda _: None, before=servers.redis_killed),
    Case("Redis is killed, and comes back empty", servers.redis_empty, in_ci=True),
    Case("Redis is paused before the job is submitted", lambda _: None, before=servers.redis_paused),
    Case("PostgreSQL is restarted while a checkpoint is committed", servers.postgres_restarted_at_commit, in_ci=True),
    Case("PostgreSQL's answers to commits are lost", servers.postgres_answers_lost, in_ci=True),
    Case(
        "PostgreSQL's answer to the claim is lost", servers.postgres_claim_lost, before=servers.lose_claim, in_ci=True
    ),
    Case("PostgreSQL's connections are cut one by one for 8 s", servers.postgres_connections_cut, in_ci=True),
    Case("PostgreSQL is away for longer than the lease", servers.postgres_away),
    Case("the store answers 500 to twelve requests of uploads", store.fails_uploads("500", 12)),
    Case("the store answers 503 SlowDown to twelve requests of uploads", store.fails_uploads("503", 12)),
    Case("the store does not answer two requests of uploads", store.fails_uploads("hang", 2)),
    Case("the store answers 500 to reads of the next attempt", store.fails_staging("500", 4)),
    Case("the store cuts three bodies short", store.fails_staging("cut", 3)),
    Case("the store sends half of a body as if it were all", store.fails_staging("short", 1), in_ci=True),
    Case("the store sends a wrong byte once", store.fails_staging("flip", 1), in_ci=True),
    Case("the newest checkpoint is truncated", store.damage("truncated")),
    Case("a byte of the newest checkpoint is flipped", store.damage("flipped"), in_ci=True),
    Case("the newest checkpoint's manifest is missing", store.damage("manifest")),
    Case("the disk is full while the run saves", machines.disk_full("saving"), before=machines.no_worker),
    Case("the disk is full while an attempt is staged", machines.disk_full("staging"), before=machines.no_worker),
    Case("the disk is full while the run trains", machines.disk_full("training"), before=machines.no_worker),
    Case("the store's disk is full for 30 s while checkpoints are uploaded", store.disk_full),
    Case("messages are doubled, reordered and forged", servers.strange_messages, in_ci=True),
    Case("two reapers lead at once", processes.two_reapers),
    Case(
        "a worker's clock is an hour ahead, the next one's an hour behind",
        machines.clock_ahead_then_behind,
        before=machines.clock_ahead,
    ),
    Case("a worker is older than the schema and the job's spec", servers.old_worker, before=servers.newer_schema),
    Case("the worker is deployed anew in every phase", processes.deploy_in_every_phase, before=machines.one_worker),
    Case("the machine runs out of memory", machines.host_out_of_memory, before=machines.job_for_later),
    Case("everything is lost, and restored from a backup", store.restore_backup, in_ci=True),
]
