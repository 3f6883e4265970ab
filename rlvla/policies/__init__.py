"""Observations in, actions out: a folder per family, `family.py` for what one supplies, `models` for the networks."""
