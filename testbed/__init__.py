"""A miniature task, and models small enough to train on a laptop, in which prefix failure is real.

Owns the task, its data, the training of the small models and their measurement.
Knows nothing of the engine or the service; they meet these models as ordinary
Hugging Face folders and these problems as ordinary JSONL.
"""
