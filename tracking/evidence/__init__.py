"""What the charts of a comparison are drawn from."""
