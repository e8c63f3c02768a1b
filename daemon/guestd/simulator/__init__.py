"""A fleet of simulated guests, the same for the same seed, for demos and load tests."""

from __future__ import annotations

from guestd.simulator.guest import machine_ids

__all__ = ["machine_ids"]
