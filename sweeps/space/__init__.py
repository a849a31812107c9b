"""Search spaces: distributions, and drawing points of them."""
