"""The problems of a run: `sources` finds their rows, `problems` loads them, `problem_sets` splits them."""
