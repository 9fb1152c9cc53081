"""Leader election by a Lease: of several operators one acts, and only while it surely holds the Lease.

The rules are client-go's. Not `kubernetes.aio.leaderelection`: in 37.0 it cannot create a Lease, ends at the first
broken connection, and does not release the Lease at its end.
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

LEASE_DURATION, RENEW_DEADLINE, RETRY_PERIOD = 15, 10, 2
"""Seconds, as in Kubernetes' own controllers: after a renewal other candidates wait for the lease duration, and the
leader acts until the renew deadline.
"""
TRY_TIMEOUT, ACQUIRE_PERIOD = 4, 1
"""Seconds. A renewal without an answer leaves time for another one, by a new connection, before the renew deadline. A
candidate that does not lead tries to acquire the Lease once each acquire period.
"""

Object = dict[str, Any]


class LeaderElection:
    """A candidate. `is_leader` is asked before each write: a process that was paused may have lost the Lease."""

    def __init__(self, transport: Transport, namespace: str, name: str, identity: str) -> None:
        self._transport, self._name, self._identity = transport, name, identity
        self._leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._leases}/{name}"
        self._renewed: float | None = None
        self._observed_version, self._observed_time = "", 0.0

    @property
    def is_leader(self) -> bool:
        """Whether this candidate holds the Lease, by a clock that continues while the process is paused."""
        renewed = self._renewed  # once, for a scrape asks from a thread of its own
        return renewed is not None and time.monotonic() - renewed < RENEW_DEADLINE

    async def run(self, on_started_leading: Callable[[], None]) -> None:
        """Runs until it is cancelled. on_started_leading: called whenever it begins to lead."""
        led = False
        while True:
            led = self._transition(led, on_started_leading)  # it may have ended while this process was paused
            asked, renewed = time.monotonic(), False
            try:
                async with asyncio.timeout(TRY_TIMEOUT):  # before Python 3.12 wait_for may miss a cancellation
                    renewed = await self._try_acquire_or_renew()
            except (UnreachableError, RefusedError, TimeoutError) as error:
                log.debug("lease: %s", error)
            if renewed:
                self._renewed = asked
            led = self._transition(led, on_started_leading)
            await asyncio.sleep(RETRY_PERIOD if renewed else ACQUIRE_PERIOD)

    def _transition(self, led: bool, on_started_leading: Callable[[], None]) -> bool:
        """Logs a change of leadership; returns whether this candidate leads now."""
        leads = self.is_leader
        if leads and not led:
            log.info("leading")
            on_started_leading()
        elif led and not leads:
            log.warning("not leading any more: the lease was not renewed in time")
        return leads

    async def release(self) -> None:
        """Releases the Lease, so that another candidate need not wait for its end."""
        leads, self._renewed = self.is_leader, None
        if not leads:
            return
        with suppress(UnreachableError, RefusedError, TimeoutError):  # then the others wait for the lease duration
            await asyncio.wait_for(self._clear_holder(), TRY_TIMEOUT)

    async def _clear_holder(self) -> None:
        lease = await self._transport.request("get", self._path)
        if lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"] = {"leaseTransitions": lease["spec"].get("leaseTransitions", 0)}
            await self._transport.request("update", self._path, lease)

    async def _try_acquire_or_renew(self) -> bool:
        """Whether it holds the Lease now. When two candidates try at once, one gets a conflict of versions."""
        try:
            lease = await self._transport.request("get", self._path)
        except RefusedError as refusal:
            if refusal.status != 404:
                raise
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._name}}
            await self._transport.request("create", self._leases, lease | {"spec": self._spec({})})
            return True
        holder, version = lease["spec"].get("holderIdentity"), lease["metadata"]["resourceVersion"]
        if version != self._observed_version:  # timed by our own clock, for the holder's may differ
            self._observed_version, self._observed_time = version, time.monotonic()
        if holder and holder != self._identity and time.monotonic() - self._observed_time < LEASE_DURATION:
            return False
        await self._transport.request("update", self._path, lease | {"spec": self._spec(lease["spec"])})
        return True

    def _spec(self, before: Object) -> Object:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        renewal = before.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_DURATION,
            "acquireTime": before.get("acquireTime", now) if renewal else now,
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (0 if renewal or not before else 1),
        }
