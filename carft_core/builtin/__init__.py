"""The embedded benchmark and the small CLIP model trained for it, with their licences."""
