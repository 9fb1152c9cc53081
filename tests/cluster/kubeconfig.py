"""Kubeconfigs: the address of an API server and the credentials of a user, in one file."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.certificates import KeyPair, base64_text


@dataclass(frozen=True)
class Endpoint:
    """An API server: its URL, and the authority (PEM) that signed its certificate."""

    url: str
    authority: bytes


def write(path: Path, endpoint: Endpoint, user: KeyPair | str) -> Path:
    """A kubeconfig, readable by its owner alone, for the user of a client certificate or of a bearer token."""
    if isinstance(user, KeyPair):
        identity = {
            "client-certificate-data": base64_text(user.certificate),
            "client-key-data": base64_text(user.key),
        }
    else:
        identity = {"token": user}
    cluster = {"server": endpoint.url, "certificate-authority-data": base64_text(endpoint.authority)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "tests", "user": identity}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        "current-context": "tests",
    }
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(config, file, indent=1)  # JSON is YAML
    return path
