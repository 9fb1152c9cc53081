"""The policy, the DDIM sampler, the noise, and the batch sizes."""
