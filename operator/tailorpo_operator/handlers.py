"""kopf's part: it watches. Handlers keep what they are shown and say which job to look at; nothing is decided here.

Only `on.event`, which writes nothing by itself: no annotation, no finalizer, no last-handled state.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import kopf

from tailorpo_operator import naming
from tailorpo_operator.api import GROUP, PLURAL, VERSION
from tailorpo_operator.store import Key, Store

SERVER_SECONDS, CLIENT_SECONDS, CONNECT_SECONDS = 300, 310, 30
"""A watch ends by itself before a dead connection could go unnoticed for long."""


def registry(
    store: Store, add: Callable[[Key], None], now: Callable[[], datetime], login: Any
) -> kopf.OperatorRegistry:
    """The handlers, and what they act on."""
    made = kopf.OperatorRegistry()

    async def job(event: Any, **_: Any) -> None:
        tree = event["object"]
        add(store.drop_job(tree) if event["type"] == "DELETED" else store.put_job(tree))

    async def gang(event: Any, **_: Any) -> None:
        tree = event["object"]
        key = store.drop_gang(tree) if event["type"] == "DELETED" else store.put_gang(tree)
        if key is not None:
            add(key)

    async def pod(event: Any, **_: Any) -> None:
        tree = event["object"]
        key = store.drop_pod(tree) if event["type"] == "DELETED" else store.put_pod(tree, now())
        if key is not None:
            add(key)

    kopf.on.event(GROUP, VERSION, PLURAL, registry=made)(job)
    kopf.on.event("batch", "v1", "jobs", labels={naming.JOB: kopf.PRESENT}, registry=made)(gang)
    kopf.on.event("", "v1", "pods", labels={naming.JOB: kopf.PRESENT}, registry=made)(pod)
    kopf.on.login(registry=made)(login)
    return made


def settings() -> kopf.OperatorSettings:
    made = kopf.OperatorSettings()
    made.watching.server_timeout = SERVER_SECONDS
    made.watching.client_timeout = CLIENT_SECONDS
    made.watching.connect_timeout = CONNECT_SECONDS
    # Only our own children come over the wire, not every pod of the cluster.
    made.watching.label_selectors["batch", "v1", "jobs"] = naming.JOB
    made.watching.label_selectors["", "v1", "pods"] = naming.JOB
    made.scanning.disabled = True  # needs rights on definitions and namespaces of the whole cluster
    made.posting.enabled = False
    made.process.ultimate_exiting_timeout = None
    return made
