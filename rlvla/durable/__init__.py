"""Content in, files that outlive a kill out: locks, sealed checkpoints, stored trajectories, random state, signals."""
