"""What a run recorded: metrics, trajectories, diagnoses, evaluations and probe samples."""
