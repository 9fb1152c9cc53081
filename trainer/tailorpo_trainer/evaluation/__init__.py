"""How good a policy is: measurements on held-out prompts, comparisons, contact sheets."""
