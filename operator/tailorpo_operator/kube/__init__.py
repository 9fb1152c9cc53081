"""The API server: transport, client, reflector, cache, leader election, kubeconfig."""
