"""Reports a run's figures to trackers, from separate processes, so that no outage of a tracker affects the training."""
