"""The family `chain_of_action`: chains of actions are decoded backwards from their goal (arXiv 2506.09990)."""
