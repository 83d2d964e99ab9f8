"""The Python client of the service, and the command line ``trd`` on top of it (`client.cli`).

    from client import Client

    with Client() as trd:
        job = trd.jobs.create({"mode": "trd", "student": "tiny-student", "teacher": "tiny-teacher", "dataset": "ds_…"})
        for event in trd.events.follow(job.id):
            print(event)

`AsyncClient` has the same calls; `Client` is generated from it (`client.generate`). The package uses HTTP and
`contract`, and the command line also the plots and the reader of specs of `trd_data`; it never imports the service, the
worker, the engine or a tensor library.
"""

from client._async.client import AsyncClient
from client._sync.client import Client
from client.errors import ApiError, TrdError
from client.settings import ClientSettings
from contract.views.jobs import JobView

__all__ = ["ApiError", "AsyncClient", "Client", "ClientSettings", "JobView", "TrdError"]
