// Helm, built for tests and for the generator of `manifests/` by `python -m tests.cluster build`.
module tailorpo.dev/tests/cluster/helm

go 1.26.0

tool helm.sh/helm/v4/cmd/helm

require helm.sh/helm/v4 v4.3.1
