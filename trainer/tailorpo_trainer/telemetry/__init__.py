"""Who is told how a run goes: Prometheus, TensorBoard, HTTP, the console, alarms, the termination message."""
