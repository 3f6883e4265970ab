"""Policies served: contexts in, sampled tokens with their log-probabilities out."""
