"""What a run leaves on disk: metrics, rollouts, their summary. Trains nothing."""
