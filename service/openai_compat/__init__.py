"""The same files, jobs, checkpoints and models in the vocabulary of the `openai` client, under ``/v1``.

Owns shapes, names and the translation of requests. Has no rules: it calls the use cases of the other nouns.
"""
