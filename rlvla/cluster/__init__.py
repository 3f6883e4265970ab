"""Jobs in, trajectories and updates out of Ray actors: where each process runs, and how weights reach it."""
