"""Where the progress of a run is shown: Prometheus, TensorBoard, HTTP, the console, alarms, the termination message."""
