"""ACoT-VLA without words: a coarse reference motion first, then actions that attend to it, both by flow matching."""
