"""Datasets, which the `openai` client knows as files with the purpose ``fine-tune``."""
