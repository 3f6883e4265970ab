"""Tasks and a sampler in, groups of trajectories out; envs run in processes of their own."""
