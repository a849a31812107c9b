"""Whether everything that sweeps stand on is there and agrees, and what to do where it does not."""
