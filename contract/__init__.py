"""What the API and the workers agree on: the job spec, the states, the tables, the messages.

Owns names and shapes only. Never imports torch, FastAPI, Celery or another package of this project.
"""
