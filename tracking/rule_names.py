"""What rules of selection say in names: DomainBed's rules, a task's metric, a domain left out."""

from __future__ import annotations

from typing import Literal

TASK = "{task}"
"""Stands in a metric for the name of each task."""
Named = Literal["training_domain", "leave_one_domain_out"]
NAMED: tuple[Named, ...] = ("training_domain", "leave_one_domain_out")
"""Rules of DomainBed's by its names."""
LEAVE_ONE_OUT: Named = "leave_one_domain_out"
TEST_DOMAIN = "data.test_domain"
"""The field that names the domain held out."""
VAL_DOMAIN = "data.val_domain"
"""The field that names a further domain left out; such a run is measured on it as `id/val`."""
