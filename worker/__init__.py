"""The workers: a Celery process that supervises, and the engine as its child.

The database is the only truth and a message only a doorbell; torch is never loaded in the Celery
process. Imports `contract`; `worker.engine_child` alone imports `trd_engine`; never `service`.
"""
