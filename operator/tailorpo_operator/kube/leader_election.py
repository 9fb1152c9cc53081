"""Which of several operators works: who holds a Lease, and only while it surely does.

The rules are client-go's. Not `kubernetes.aio.leaderelection`: in 37.0 it cannot create a Lease, ends at the first
connection that breaks, and gives nothing back at the end.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from tailorpo_operator.kube.transport import RefusedError, Transport, UnreachableError

log = logging.getLogger(__name__)

LEASE_SECONDS, DEADLINE_SECONDS, RENEW_SECONDS = 15, 10, 2
"""As Kubernetes' own controllers: others wait for the first after a renewal, we act for the second."""
TRY_SECONDS, PAUSE_SECONDS = 4, 1
"""A renewal that nobody answers leaves time for another, by another connection. Who stands by looks at every pause."""

Object = dict[str, Any]


class LeaderElection:
    """A candidate. `held` is asked before every write: a process that was stopped for a while wakes up deposed."""

    def __init__(self, wire: Transport, namespace: str, name: str, identity: str) -> None:
        self._wire, self._name, self._identity = wire, name, identity
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._renewed: float | None = None
        self._seen: tuple[str, float] = ("", 0.0)

    @property
    def held(self) -> bool:
        """Whether the lease is ours, by a clock that goes on while a process is stopped."""
        return self._renewed is not None and time.monotonic() - self._renewed < DEADLINE_SECONDS

    async def run(self, elected: Callable[[], None]) -> None:
        """Until it is cancelled. elected: called whenever it begins to lead."""
        led = False
        while True:
            led = self._told(led, elected)  # it may have ended while this process was stopped
            asked, renewed = time.monotonic(), False
            try:
                async with asyncio.timeout(TRY_SECONDS):  # before Python 3.12 wait_for may miss a cancellation
                    renewed = await self._try()
            except (UnreachableError, RefusedError, TimeoutError) as error:
                log.debug("lease: %s", error)
            if renewed:
                self._renewed = asked
            led = self._told(led, elected)
            await asyncio.sleep(RENEW_SECONDS if renewed else PAUSE_SECONDS)

    def _told(self, led: bool, elected: Callable[[], None]) -> bool:
        """Says what has changed; returns whether it leads now."""
        held = self.held
        if held and not led:
            log.info("leading")
            elected()
        elif led and not held:
            log.warning("not leading any more: the lease was not renewed in time")
        return held

    async def release(self) -> None:
        """Give the lease back, so that another need not wait for its end."""
        held, self._renewed = self.held, None
        if not held:
            return
        with suppress(UnreachableError, RefusedError, TimeoutError):  # then they wait
            await asyncio.wait_for(self._give_back(), TRY_SECONDS)

    async def _give_back(self) -> None:
        lease = await self._wire.request("get", f"{self._path}/{self._name}")
        if lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"] = {"leaseTransitions": lease["spec"].get("leaseTransitions", 0)}
            await self._wire.request("update", f"{self._path}/{self._name}", lease)

    async def _try(self) -> bool:
        """Take the lease, or renew it. Two who try at once meet in a conflict of versions."""
        try:
            lease = await self._wire.request("get", f"{self._path}/{self._name}")
        except RefusedError as refusal:
            if refusal.status != 404:
                raise
            made = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._name}}
            await self._wire.request("create", self._path, made | {"spec": self._spec({})})
            return True
        holder, version = lease["spec"].get("holderIdentity"), lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:  # by our own clock, for others' may differ
            self._seen = (version, time.monotonic())
        if holder and holder != self._identity and time.monotonic() - self._seen[1] < LEASE_SECONDS:
            return False
        await self._wire.request("update", f"{self._path}/{self._name}", lease | {"spec": self._spec(lease["spec"])})
        return True

    def _spec(self, before: Object) -> Object:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        mine = before.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": before.get("acquireTime", now) if mine else now,
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (0 if mine or not before else 1),
        }
