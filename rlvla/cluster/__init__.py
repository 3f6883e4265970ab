"""Which process runs where: Ray actors, their placement, jobs, and the way of the weights."""
