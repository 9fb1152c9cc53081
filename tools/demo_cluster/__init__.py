"""`make demo-cluster`: a Kubernetes cluster, the chart, storage and Prometheus here, and a job that trains."""
