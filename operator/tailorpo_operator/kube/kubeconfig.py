"""How the API server is reached, for `kubernetes.aio` and for kopf alike."""

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
    """That of a kubeconfig if one is named, else the pod's own service account, else the user's kubeconfig.

    Raises `ConfigurationError`.
    """
    made: Any = Configuration()
    made.connection_pool_maxsize = 0  # no bound: each watch holds one for minutes
    where = str(kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config")
    in_pod = kubeconfig is None and context is None and IN_POD in os.environ
    if not in_pod and not any(Path(each).expanduser().is_file() for each in where.split(os.pathsep)):
        raise ConfigurationError(f"there is no kubeconfig {where}, and this is no pod: name one with --kubeconfig")
    try:
        if in_pod:
            load_incluster_config(client_configuration=made)
        else:
            await load_kube_config(
                config_file=None if kubeconfig is None else str(kubeconfig),
                context=context,
                client_configuration=made,
                persist_config=False,
            )
    except ConfigException as error:
        words = str(error).removeprefix("Invalid kube-config file. ")
        raise ConfigurationError(f"{'service account' if in_pod else f'kubeconfig {where}'}: {words}") from None
    except Exception as error:  # what its parsers raise at a file that is something else
        raise ConfigurationError(f"kubeconfig {where} is none, or damaged ({type(error).__name__})") from None
    made.proxy = made.proxy or _proxy(str(made.host))
    made.client_session_kwargs = {"trust_env": False}  # it would look for proxies and .netrc at each request
    return made


def _proxy(server: str) -> str | None:
    """The one that the environment names for a server."""
    address = urlsplit(server)
    return None if proxy_bypass(address.netloc) else getproxies().get(address.scheme)


async def renew(known: Any, kubeconfig: Path | None, context: str | None) -> None:
    """Takes over the credentials that hold now; the ones that are known if there are no others."""
    try:
        made: Any = await load(kubeconfig, context)
    except ConfigurationError as error:
        log.warning("credentials cannot be renewed: %s", error)
        return
    for name in ("api_key", "api_key_prefix", "refresh_api_key_hook", "username", "password"):
        setattr(known, name, getattr(made, name))


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
        )

    return handler
