"""An event loop whose clock is not this machine's: timers are on time however busy it is, and nobody waits for them."""

import asyncio
import selectors


class _Selector(selectors.DefaultSelector):
    """Instead of waiting for a timer it puts the clock on."""

    now_seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:  # no timer is left: something else has to happen
            return super().select(None)
        self.now_seconds += max(0.0, timeout)
        return super().select(0)


class QuickLoop(asyncio.SelectorEventLoop):
    """Goes from timer to timer. For code that waits for nothing but timers and its own tasks."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Seconds since the loop was made, by its own clock."""
        return self._clock.now_seconds
