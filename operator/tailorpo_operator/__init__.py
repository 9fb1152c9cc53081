"""Kubernetes operator for TailorPOJob resources."""
