"""A config in, one run's folder out: checks before it starts, metrics, ledger, resume, evaluation."""
