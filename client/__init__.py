"""The Python client of the service, and on top of it the command line ``trd`` in `client.cli`.

    from client import Client

    with Client() as trd:
        job = trd.jobs.create({"mode": "trd", "student": "tiny-student", "teacher": "tiny-teacher", "dataset": "ds_…"})
        for event in trd.events.follow(job.id):
            print(event)

Speaks HTTP and knows the `contract`; never imports the service, a worker, the engine or a tensor library.
`AsyncClient` has the same calls.
"""

from client.async_client import AsyncClient
from client.errors import ApiError, TrdError
from client.settings import ClientSettings
from client.sync_client import Client
from contract.views.jobs import JobView

__all__ = ["ApiError", "AsyncClient", "Client", "ClientSettings", "JobView", "TrdError"]
