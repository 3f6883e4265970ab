"""A policy served by a vLLM engine."""
