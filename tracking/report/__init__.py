"""A comparison as it is shown: `table` builds it; `terminal`, `formats` and `html` print it."""
