"""The process: manager, kopf's handlers, reconciler, work queue, workers, progress poller, health."""
