"""`helm test`: creates a tiny TailorPOJob, waits until it has succeeded, and deletes it.

Arguments: name and namespace of the job, seconds to wait, and the folder of the service account's token. It needs only
Python itself, so it runs in the operator's image.
"""

import json
import os
import ssl
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

name, namespace, seconds, folder = sys.argv[1:]
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
root = f"https://{f'[{host}]' if ':' in host else host}:{port}"
jobs = f"{root}/apis/tailorpo.dev/v1alpha1/namespaces/{namespace}/tailorpojobs"
trust = ssl.create_default_context(cafile=f"{folder}/ca.crt")
document = {
    "apiVersion": "tailorpo.dev/v1alpha1",
    "kind": "TailorPOJob",
    "metadata": {"name": name},
    "spec": {
        "model": {"name": "tiny-animals"},
        "prompts": {"builtin": "tiny-animals"},
        "rewards": [{"name": "colourfulness"}],
        "method": {"name": "tailorpo"},
        "sampling": {"steps": 4},
        "training": {"iterations": 1, "promptsPerIteration": 2},
        "runPolicy": {"backoffLimit": 0},
    },
}


def ask(method: str, url: str, body: object = None) -> dict:
    headers = {
        "Authorization": f"Bearer {Path(folder, 'token').read_text().strip()}",
        "Content-Type": "application/json",
    }
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, headers, method=method), timeout=30, context=trust) as answer:
        return json.load(answer)


def delete() -> None:
    """Returns when the job is gone."""
    try:
        ask("DELETE", f"{jobs}/{name}")
        while True:
            ask("GET", f"{jobs}/{name}")
            time.sleep(1)
    except HTTPError as error:
        if error.code != 404:
            raise


deadline = time.monotonic() + float(seconds)
status: dict = {}
try:
    delete()  # that of an earlier test
    ask("POST", jobs, document)
    while status.get("phase") not in ("Succeeded", "Failed") and time.monotonic() < deadline:
        time.sleep(1)
        seen = ask("GET", f"{jobs}/{name}").get("status", {})
        if seen.get("phase") != status.get("phase"):
            print(f"{namespace}/{name}: {seen.get('phase')} {seen.get('message', '')}".rstrip(), flush=True)
        status = seen
    delete()
except HTTPError as error:
    sys.exit(f"{error.url}: {error.code} {error.read().decode()}")
if status.get("phase") != "Succeeded":
    sys.exit(f"{namespace}/{name} has not succeeded within {seconds} s: {json.dumps(status)}")
