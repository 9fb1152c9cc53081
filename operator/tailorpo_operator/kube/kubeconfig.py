"""Address and credentials of the API server, for `kubernetes.aio` and for kopf."""

import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import kopf
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from tailorpo_trainer.errors import ConfigurationError

log = logging.getLogger(__name__)

IN_POD = "KUBERNETES_SERVICE_HOST"


async def load(kubeconfig: Path | None, context: str | None) -> Configuration:
    """Of a kubeconfig if one is named, otherwise of the pod's own service account or the user's kubeconfig.

    Raises `ConfigurationError`.
    """
    configuration: Any = Configuration()
    configuration.connection_pool_maxsize = 0  # unbounded: each watch holds a connection for minutes
    path = str(kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config")
    in_pod = kubeconfig is None and context is None and IN_POD in os.environ
    if not in_pod and not any(Path(each).expanduser().is_file() for each in path.split(os.pathsep)):
        raise ConfigurationError(f"there is no kubeconfig {path}, and this is no pod: name one with --kubeconfig")
    try:
        if in_pod:
            load_incluster_config(client_configuration=configuration)
        else:
            await load_kube_config(
                config_file=None if kubeconfig is None else str(kubeconfig),
                context=context,
                client_configuration=configuration,
                persist_config=False,
            )
    except ConfigException as error:
        message = str(error).removeprefix("Invalid kube-config file. ")
        raise ConfigurationError(f"{'service account' if in_pod else f'kubeconfig {path}'}: {message}") from None
    except Exception as error:  # whatever its parsers raise for a file of another kind
        raise ConfigurationError(f"kubeconfig {path} is none, or damaged ({type(error).__name__})") from None
    configuration.proxy = configuration.proxy or _proxy(str(configuration.host))
    configuration.client_session_kwargs = {"trust_env": False}  # or it searches for proxies and .netrc at each request
    return configuration


def _proxy(server: str) -> str | None:
    """The proxy that the environment names for a server."""
    address = urlsplit(server)
    return None if proxy_bypass(address.netloc) else getproxies().get(address.scheme)


async def renew(configuration: Any, kubeconfig: Path | None, context: str | None) -> None:
    """Replaces the credentials of a configuration by the current ones; keeps them if these cannot be read."""
    try:
        current: Any = await load(kubeconfig, context)
    except ConfigurationError as error:
        log.warning("credentials cannot be renewed: %s", error)
        return
    for name in ("api_key", "api_key_prefix", "refresh_api_key_hook", "username", "password"):
        setattr(configuration, name, getattr(current, name))


def login(kubeconfig: Path | None, context: str | None) -> Any:
    """kopf's login handler. kopf calls it again when the API server rejects a token, which may have been replaced."""

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
        )

    return handler
