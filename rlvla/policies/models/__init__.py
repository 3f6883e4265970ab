"""Models that transformers has no class for, each a sub-package, written natively: no remote code."""
