"""Trajectories: collect the student's rollouts (y_o), refine them (y_r), verify both, and store them."""
