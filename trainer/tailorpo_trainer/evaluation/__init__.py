"""The quality of a policy: measurements on held-out prompts, comparisons, contact sheets."""
