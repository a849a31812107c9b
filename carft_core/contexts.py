"""The contexts of a run: those asked for, and what of them names a domain that is held out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from carft_core.config_sections import DataConfig, PromptsConfig
from carft_core.data.held_out import held_out
from carft_core.errors import RequestError
from carft_core.prompts import TemplateSet, named_domains, template_set

KNOWN_WORDS = "known_domain_words"
"""The set that a run takes without the templates that name a domain held out of it."""


def context_set(prompts: PromptsConfig, data: DataConfig) -> TemplateSet:
    """What `prompts.contexts` stands for in a run on `data`.

    Raises RequestError for a name nobody knows, for each mistake in a file, and where every
    template names a domain that is held out.
    """
    templates = template_set(prompts.contexts)
    unknown = held_out(data)
    if prompts.contexts != KNOWN_WORDS or not named_domains(templates, unknown):
        return templates
    return without(templates, unknown)


def without(templates: TemplateSet, words: Iterable[str]) -> TemplateSet:
    """The templates that name none of the words, under a name that says so.

    Raises RequestError when none is left.
    """
    words = tuple(words)
    kept = [
        template
        for template in templates.templates
        if not named_domains(TemplateSet(templates.name, (template,)), words)
    ]
    named = f"{templates.name} without {', '.join(words)}"
    if not kept:
        raise RequestError(f"prompts.contexts: nothing is left of {named}")
    left = TemplateSet(named, tuple(kept))
    return replace(left, domains=named_domains(left, templates.domains))


def words_to_mark(contexts: TemplateSet, data: DataConfig, domains: Iterable[str]) -> list[str]:
    """The domains that contexts name and should not know: those held out; of a family that holds
    none out, any of its `domains`."""
    return sorted(named_domains(contexts, held_out(data) or domains))
