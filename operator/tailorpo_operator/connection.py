"""How the API server is reached, for `kubernetes.aio` and for kopf alike."""

import os
from pathlib import Path
from typing import Any

import kopf
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from tailorpo_trainer.exits import ConfigurationError

IN_POD = "KUBERNETES_SERVICE_HOST"


async def load(kubeconfig: Path | None, context: str | None) -> Configuration:
    """That of a kubeconfig if one is named, else the pod's own service account, else the user's kubeconfig.

    Raises `ConfigurationError`.
    """
    made: Any = Configuration()
    try:
        if kubeconfig is None and context is None and IN_POD in os.environ:
            load_incluster_config(client_configuration=made)
        else:
            await load_kube_config(
                config_file=None if kubeconfig is None else str(kubeconfig),
                context=context,
                client_configuration=made,
                persist_config=False,
            )
    except (ConfigException, OSError) as error:
        where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        raise ConfigurationError(f"kubeconfig {where}: {error}: name another with --kubeconfig") from None
    return made


def login(kubeconfig: Path | None, context: str | None) -> Any:
    """kopf's login handler. It is called again when a token is refused, as one that has been replaced."""

    async def handler(**kwargs: Any) -> kopf.ConnectionInfo:
        configuration = await load(kubeconfig, context)
        header = await configuration.get_api_key_with_prefix("BearerToken")
        scheme, _, token = str(header or "").rpartition(" ")
        return kopf.ConnectionInfo(
            server=str(configuration.host),
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            username=configuration.username or None,
            password=configuration.password or None,
            scheme=scheme or None,
            token=token or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            proxy_url=configuration.proxy,
            trust_env=True,
        )

    return handler
