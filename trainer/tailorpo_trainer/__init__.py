"""Step-wise preference optimisation of text-to-image diffusion models."""
