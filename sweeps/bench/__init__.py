"""What sweeps cost, each beside what the same work costs at least on the same machine."""
