"""The workers: a Celery process that supervises, and the engine as its child process.

The database decides; a message is only a doorbell. The Celery process never loads torch. This package imports
`contract` and `trd_data`, never `service`; only `worker.engine_child` imports `trd_engine`.
"""
