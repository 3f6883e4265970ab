"""What acts: a folder per family, and `models`, the networks that they are made of."""
