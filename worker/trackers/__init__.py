"""Reports a run's figures to trackers, from processes of their own: no outage of theirs touches the training."""
