"""The same files, jobs, checkpoints and models in the words of the `openai` client, under ``/v1``.

Owns shapes, names and the translation of requests. Refuses rules of its own: what is admitted, recorded
and led from status to status is `service.jobs`', what is received and given up `service.datasets`'.
"""
