"""The database schema, made step by step by alembic. `contract.tables` is what the newest step leads to."""
