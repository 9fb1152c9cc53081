"""The policy, the sampler's tables, the noise, and how much is computed at once."""
