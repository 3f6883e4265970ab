"""Checkpoint folders in, networks out: those that transformers lacks, written natively, and LoRA."""
