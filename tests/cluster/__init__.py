"""A real Kubernetes control plane for tests, without root: see README.md beside this file."""
