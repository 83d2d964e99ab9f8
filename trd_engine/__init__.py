"""The refine-and-distil loop of Trajectory-Refined Distillation (arXiv 2606.08432).

Usable alone (``python -m trd_engine run spec.json --out DIR``). Knows nothing of HTTP, Celery or SQL:
it reads a spec and a file of problems, and writes events, trajectories and checkpoints to a folder.
"""
