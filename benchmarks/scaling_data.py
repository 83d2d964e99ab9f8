"""Fills a PostgreSQL database with ten million jobs of 200 owners, as `benchmarks.scaling` measures it.

The jobs are copies of a submitted one, spread over three years. The oldest wait in the queue `BACKLOG`, for a hundred
separate owners. The newest wait in the default queue, and all others are over: each of the other hundred owners has
about 60,000 of these. Indexes are built after the rows, and rows of a table that was emptied in the
same transaction are not logged: it takes minutes instead of an hour.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from contract.ids import JOB_PREFIX
from contract.messages import DEFAULT_QUEUE
from contract.tables import Job

DAYS = 1000
"""Days between the oldest job and now."""
BACKLOG = "backlog"
TABLES = ("jobs", "job_tags")


@dataclass(frozen=True)
class Population:
    """Numbers of stored jobs."""

    num_jobs: int

    @property
    def num_backlog(self) -> int:
        """Jobs that wait in `BACKLOG`."""
        return self.num_jobs * 4 // 10

    @property
    def num_waiting(self) -> int:
        """Jobs that wait in the default queue."""
        return self.num_jobs // 100


def owner_name(number: int) -> str:
    """Return the name of an owner, from 0."""
    return f"owner-{number:02d}"


def count_jobs(engine: Engine) -> int:
    """Return how many jobs are stored, to about a percent."""
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT greatest(reltuples, 0) FROM pg_class WHERE relname = 'jobs'")) or 0)


def fill(engine: Engine, template_id: str, population: Population) -> None:
    """Replace all jobs by copies of the job `template_id`, with tags."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # skips each row's foreign keys
        connection.execute(text("SET LOCAL maintenance_work_mem = '512MB'"))
        indexes = _drop_indexes(connection)
        copied = "CREATE TEMPORARY TABLE template ON COMMIT DROP AS SELECT * FROM jobs WHERE id = :id"
        connection.execute(text(copied), {"id": template_id})
        connection.execute(text("TRUNCATE jobs CASCADE"))
        _insert_jobs(connection, population)
        _insert_tags(connection)
        for definition in indexes:
            connection.execute(text(definition))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) jobs, job_tags"))  # as autovacuum does after some time


def _drop_indexes(connection: Connection) -> list[str]:
    """Drop the indexes that belong to no constraint; return the statements that build them."""
    query = (
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = ANY(:tables) "
        "AND indexname NOT IN (SELECT conname FROM pg_constraint)"
    )
    found = connection.execute(text(query), {"tables": list(TABLES)}).all()
    for name, _ in found:
        connection.execute(text(f"DROP INDEX {name}"))
    return [definition for _, definition in found]


def _insert_jobs(connection: Connection, population: Population) -> None:
    is_over = "n > :num_backlog AND n <= :num_jobs - :num_waiting"
    is_bulk = "n <= :num_backlog OR n > :num_jobs - :num_waiting AND n % 2 = 0"
    changed = {
        "id": _id_sql("made"),
        # The number is independent of what depends on n's last digits.
        "owner": f"CASE WHEN {is_bulk} THEN 'bulk-' ELSE 'owner-' END || lpad((abs(hashint8(n)) % 100)::text, 2, '0')",
        "name": "(ARRAY['qwen3-1.7b', 'llama-3.2-3b', 'gemma-3-4b', 'smollm3'])[n % 4 + 1] || ' run #' || n",
        "mode": "CASE WHEN n % 3 = 0 THEN 'opd' ELSE 'trd' END",
        "created_at": "made",
        "status": f"CASE WHEN {is_over} THEN CASE WHEN n % 50 = 0 THEN 'failed' ELSE 'succeeded' END ELSE 'queued' END",
        "finished_at": f"CASE WHEN {is_over} THEN made + interval '1 hour' END",
        "attempt": f"CASE WHEN {is_over} THEN 1 ELSE 0 END",
        "queue": f"CASE WHEN n <= :num_backlog THEN '{BACKLOG}' ELSE '{DEFAULT_QUEUE}' END",
        "priority": "n % 3",
    }
    columns = [column.name for column in Job.__table__.columns]
    values = ", ".join(changed.get(name, f'template."{name}"') for name in columns)
    names = ", ".join(f'"{name}"' for name in columns)
    numbered = (
        f"SELECT n, date_trunc('milliseconds', now() - interval '{DAYS} days' * (1 - n / :num_jobs ::float8)) AS made "
        "FROM generate_series(1, :num_jobs) AS n"
    )
    connection.execute(
        text(f"INSERT INTO jobs ({names}) SELECT {values} FROM ({numbered}) AS numbers, template"),
        {
            "num_jobs": population.num_jobs,
            "num_backlog": population.num_backlog,
            "num_waiting": population.num_waiting,
        },
    )


def _id_sql(made: str) -> str:
    """Return SQL of an id as `contract.ids` makes it, with n as its random part: a range of time is one of ids."""
    alphabet, milliseconds = "0123456789abcdefghjkmnpqrstvwxyz", f"(extract(epoch FROM {made}) * 1000)::bigint"
    digits = [f"substr('{alphabet}', (({milliseconds} >> {5 * place}) & 31)::int + 1, 1)" for place in range(9, -1, -1)]
    return f"'{JOB_PREFIX}' || {' || '.join(digits)} || lpad(n::text, 16, '0')"


def _insert_tags(connection: Connection) -> None:
    """Tag every tenth job `nightly`, every ten thousandth `paper`, and all jobs of the first ten owners `team`."""
    connection.execute(text("TRUNCATE job_tags"))
    tags = {
        "nightly": "right(id, 1) = '7'",
        "paper": "right(id, 4) = '1234'",
        "team": f"owner < '{owner_name(10)}'",
    }
    for tag, condition in tags.items():
        statement = f"INSERT INTO job_tags (job_id, tag) SELECT id, :tag FROM jobs WHERE {condition}"
        connection.execute(text(statement), {"tag": tag})
