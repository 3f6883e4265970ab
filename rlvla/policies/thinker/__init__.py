"""The policy that thinks in words and zooms: its markup, prompts, action tokens, masks and log-probabilities."""
