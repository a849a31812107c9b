"""Checks that all that sweeps need is there and fits together, with advice where it does not."""

from carft_sweep.sweeps.doctor import machine, services

__all__ = ["machine", "services"]
