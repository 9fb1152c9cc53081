"""A limit on the operator's requests."""

import asyncio


class RateLimit:
    """A token bucket: `rate` tokens a second in the long run, `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self._tokens = float(burst)
        self._filled: float | None = None

    async def take(self) -> None:
        """Waits for a token. Tokens are given in the order of the calls."""
        self._fill()
        self._tokens -= 1
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self.rate)

    def try_take(self) -> bool:
        """Takes a token if there is one now; returns whether it did."""
        self._fill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _fill(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._filled is not None:
            self._tokens = min(self.burst, self._tokens + (now - self._filled) * self.rate)
        self._filled = now
