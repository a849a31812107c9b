"""The schema of sweep files, made once: that takes seconds."""

from __future__ import annotations

from jsonschema import Draft202012Validator

from carft_sweep.sweeps.spec.schema import sweep_schema

SCHEMA = sweep_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
