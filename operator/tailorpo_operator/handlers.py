"""kopf's part: it watches TailorPOJobs. The handler keeps what it is shown and says where to look; it decides nothing.

Only `on.event`, which writes nothing by itself: no annotation, no finalizer, no last-handled state.
"""

from collections.abc import Callable
from typing import Any

import kopf

from tailorpo_operator.api import GROUP, PLURAL, VERSION
from tailorpo_operator.store import Key, Store

SERVER_SECONDS, CLIENT_SECONDS, CONNECT_SECONDS = 300, 310, 30
"""A watch ends by itself before a dead connection could go unnoticed for long."""


def registry(store: Store, add: Callable[[Key], None], login: Any) -> kopf.OperatorRegistry:
    """The handler, and what it acts on."""
    made = kopf.OperatorRegistry()

    async def job(event: Any, **_: Any) -> None:
        tree = event["object"]
        add(store.drop_job(tree) if event["type"] == "DELETED" else store.put_job(tree))

    kopf.on.event(GROUP, VERSION, PLURAL, registry=made)(job)
    kopf.on.login(registry=made)(login)
    return made


def settings() -> kopf.OperatorSettings:
    made = kopf.OperatorSettings()
    made.watching.server_timeout = SERVER_SECONDS
    made.watching.client_timeout = CLIENT_SECONDS
    made.watching.connect_timeout = CONNECT_SECONDS
    made.scanning.disabled = True  # needs rights on definitions and namespaces of the whole cluster
    made.posting.enabled = False
    made.process.ultimate_exiting_timeout = None
    return made
