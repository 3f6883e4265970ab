"""One run's folder: checks before it starts, metrics, ledger, resume, evaluation."""
