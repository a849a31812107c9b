"""The domains that a run holds out, and what is said to families that have none to hold out."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from carft_core.errors import RequestError, unknown

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig

FIELDS = ("test_domain", "val_domain")


def held_out(config: DataConfig) -> tuple[str, ...]:
    """The domains that do not train: the tested one, and the one that settings are chosen on."""
    asked = (config.test_domain, config.val_domain)
    return tuple(domain for domain in asked if domain is not None)


def check_held_out(config: DataConfig, domains: Collection[str]) -> str:
    """The domain that is tested. Raises RequestError where it or `val_domain` is none of `domains`.

    Or where both are the same.
    """
    if config.test_domain is None:
        raise RequestError(
            f"data.test_domain: which domain is held out? {config.family} has {', '.join(domains)}"
        )
    for field in FIELDS:
        domain = getattr(config, field)
        if domain is not None and domain not in domains:
            raise RequestError(f"data.{field}: {unknown('domain', domain, domains)}")
    if config.val_domain == config.test_domain:
        raise RequestError(
            f"data.val_domain: {config.val_domain} is tested (data.test_domain), and nothing is "
            "chosen on what is tested; name another domain"
        )
    return config.test_domain


def refuse_held_out(config: DataConfig, instead: str) -> None:
    """Raise RequestError where a domain is to be held out of a family that has none."""
    for field in FIELDS:
        if getattr(config, field) is not None:
            raise RequestError(
                f"data.{field}: {config.family} has no domains to hold out; {instead}"
            )
