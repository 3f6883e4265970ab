"""What outlives a kill: files and locks, sealed checkpoints, stored trajectories, random state, signals."""
