"""Robust fine-tuning of CLIP: one training loop, one evaluation, many algorithms."""

import os

# Nothing is sent home unless the user asks for it; the hub's client reads this when imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
