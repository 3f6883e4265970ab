"""LIBERO's 130 tasks, with the states and frames of its official env, and scripted experts that solve them."""
