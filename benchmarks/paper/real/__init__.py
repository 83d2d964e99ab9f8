"""The paper in small on a real model: SmolLM2-135M-Instruct, teaching itself, on tasks of `reasoning-gym`.

Owns the choice of tasks, the grid on them and its part of ``docs/paper.md``. A run is an engine spec like any user's.
"""
