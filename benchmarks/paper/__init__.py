"""The paper's claims in small: a grid of runs through the engine's public spec, and the report made from its rows.

Owns the grid, its rows and ``docs/paper.md``. Nothing here reaches into the engine: a cell is a spec.
"""
