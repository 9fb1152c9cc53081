"""Real Kubernetes nodes on this machine, for root on Linux, below the control plane of `tests.cluster`."""
