"""What the API and the workers agree on: the job spec, the states, the tables, the messages, the views of the API.

Also owns what both sides do in the same way: settings, database, storage, events, routing, retention, logs and traces.
Never imports torch, FastAPI, Celery or another package of this project.
"""
