"""What is generated of `charts/tailorpo` and `manifests/`: `python -m tools.chart`."""
