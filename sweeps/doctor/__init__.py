"""Whether everything that sweeps stand on is there and agrees, and what to do where it does not."""

from carft_sweep.sweeps.doctor import machine, services

__all__ = ["machine", "services"]
