"""Contexts know no domain that is held out, unless they are asked to; then it is told."""

from __future__ import annotations

import pytest

from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.domainbed import FOLDERS
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.prompts import (
    KNOWN_WORDS,
    TemplateSet,
    context_set,
    leaked_domains,
    named_domains,
    template_set,
    without,
)

HELD_OUT = [(name, domain) for name, found in FOLDERS.items() for domain in found]


def contexts(family: str, test: str | None, named: str | None = None) -> TemplateSet:
    data = DataConfig(family=family, test_domain=test)
    default = FAMILIES[family].defaults["prompts.contexts"]
    return context_set(named or str(default), data)


def marked(templates: TemplateSet, family: str, test: str | None) -> list[str]:
    data = DataConfig(family=family, test_domain=test)
    return leaked_domains(templates, data, FAMILIES[family].domains)


@pytest.mark.parametrize(("family", "domain"), HELD_OUT)
def test_a_familys_own_contexts_never_name_what_is_held_out(family: str, domain: str) -> None:
    found = contexts(family, domain)
    assert named_domains(found, [domain]) == ()
    assert marked(found, family, domain) == []
    assert len(found.templates) > 5


def test_what_names_the_held_out_domain_goes_and_all_else_stays() -> None:
    everything = template_set("domain_words").templates
    found = contexts("pacs", "sketch")
    assert set(everything) - set(found.templates) == {"a sketch of a {}"}
    assert "sketch" not in found.domains
    assert {"cartoon", "photo", "art painting"} <= set(found.domains)
    assert found.name == "known_domain_words without sketch"
    assert len({contexts("domain_net", domain).digest for domain in FOLDERS["domain_net"]}) == 6


def test_where_the_words_name_none_the_set_is_whole() -> None:
    assert contexts("vlcs", "sun09", named=KNOWN_WORDS) is template_set(KNOWN_WORDS)
    assert template_set(KNOWN_WORDS).digest == template_set("domain_words").digest
    assert contexts("icon_shift", None, named=KNOWN_WORDS) is template_set(KNOWN_WORDS)


def test_another_set_is_taken_as_it_is_and_marked_by_what_is_held_out_or_by_all() -> (
    None
):
    words = contexts("pacs", "sketch", named="domain_words")
    assert words is template_set("domain_words")
    assert marked(words, "pacs", "sketch") == ["sketch"]
    assert marked(words, "pacs", "art_painting") == ["art_painting"]
    training = TemplateSet("of training", ("a photo of a {}", "a cartoon of a {}"))
    assert marked(training, "pacs", "sketch") == []
    assert marked(TemplateSet("icons", ("a pixel {}",)), "icon_shift", None) == ["pixel"]


def test_contexts_that_all_name_what_is_held_out_are_refused() -> None:
    with pytest.raises(RequestError, match="nothing is left of mine without sketch, photo"):
        without(TemplateSet("mine", ("a sketch of a {}", "a {}, a photo")), ["sketch", "photo"])
