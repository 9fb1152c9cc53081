"""Training against a plain loop: time, FLOPs, memory, checkpoints, processes."""
