"""Template sets and text features: open_clip's classifier, kept on disk only while it is true."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.domainbed import FOLDERS
from carft_sweep.carft_core.errors import InvalidConfig, RequestError
from carft_sweep.carft_core.models import prompts
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.models.prompts import (
    KNOWN_WORDS,
    TemplateSet,
    class_weights,
    context_weights,
    named_domains,
    read_template_file,
    template_set,
    text_features,
)
from carft_sweep.carft_core.training.numerics import arithmetic
from tests.carft_core.refusals import refusal, refused
from tests.carft_core.stand_ins import watched

CPU = torch.device("cpu")
NAMES = ["tench", "goldfish", "kite (bird of prey)", "{odd} name", "tench"]
THREE = TemplateSet("three", ("a photo of a {}.", "{}", "a sketch of the {}"))


def test_every_set_is_known_under_its_own_name_and_fills_in_the_class() -> None:
    for name, templates in prompts.TEMPLATE_SETS.items():
        assert template_set(name) is templates
        assert templates.name == name
        assert [*templates.texts(["cat"])] == [t.replace("{}", "cat") for t in templates.templates]


def test_open_clips_sets_say_what_open_clips_functions_say() -> None:
    theirs = open_clip.OPENAI_IMAGENET_TEMPLATES, open_clip.SIMPLE_IMAGENET_TEMPLATES
    for name, functions, count in zip(("openai", "simple"), theirs, (80, 7), strict=True):
        texts = list(template_set(name).texts(["kite (bird of prey)"]))
        assert texts == [function("kite (bird of prey)") for function in functions]
        assert len(texts) == count


def test_domain_words_cover_the_domains_of_domainbed_and_declare_them() -> None:
    templates = template_set("domain_words")
    domainbed = {
        *("art painting", "cartoon", "photo", "sketch"),
        *("art", "clipart", "product", "real-world"),
        *("infograph", "painting", "quickdraw", "real", "camera trap"),
    }
    assert domainbed == set(templates.domains)
    written = " ".join(templates.templates)
    assert all(word in written for word in domainbed)
    own = {
        "openai": {"photo", "art", "painting", "cartoon", "sketch"},
        "simple": {"photo", "art"},
        "class_only": set(),
    }
    for name, named in own.items():
        assert set(named_domains(template_set(name), templates.domains)) == named


def test_named_domains_are_whole_words_of_the_templates_or_declared(tmp_path: Path) -> None:
    templates = TemplateSet("s", ("an Art-Painting of a {}", "an outlined {}"), ("snow",))
    words = ["art_painting", "outline", "art", "snow", "clipart", "a of"]
    assert named_domains(templates, words) == ("art_painting", "art", "snow")
    path = tmp_path / "own.yaml"
    path.write_text('templates: ["a sketch of a {}", "a scan of a {}"]\ndomains: [x-ray]\n')
    assert template_set(str(path)).name == "own"
    words = ["sketch", "x-ray", "photo"]
    assert named_domains(template_set(str(path)), words) == ("sketch", "x-ray")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("opneai", r"did you mean 'openai'\?.*\.txt, \.yaml"),
        *((name, "unknown template set") for name in ("", "\0", "~nobody-here", "a" * 5000)),
        ("{}/own.txt", r"own\.txt: templates\[0\]: 'a photo' has no \{\}"),
        ("{}/gone.yaml", r"gone\.yaml cannot be read"),
        ("{}", "ends in one of"),
    ],
)
def test_an_unknown_set_or_bad_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "own.txt").write_text("a photo\n")
    refused(f"(?s){message}", template_set, name.replace("{}", str(tmp_path)))


def test_no_invalid_set_can_be_made_and_the_digest_is_of_templates_in_order_only() -> None:
    refused("template set none is empty", TemplateSet, "none", ())
    with pytest.raises(InvalidConfig, match=r"bad\[1\]: 'b' has no .*\nbad\[2\]: .*twice"):
        TemplateSet("bad", ("a {}", "b", "a {}"))
    templates = TemplateSet("one", ("a {}", "b {}"), ("x",))
    assert templates.digest == TemplateSet("two", ("a {}", "b {}")).digest
    assert templates.digest != TemplateSet("one", ("b {}", "a {}"), ("x",)).digest


@pytest.mark.parametrize("name", ["openai", "simple", "domain_words"])
def test_class_weights_are_open_clips_zero_shot_weights(tiny_clip: OpenedClip, name: str) -> None:
    templates = template_set(name)
    # open_clip fills with str.format, which our odd name survives as an argument.
    expected = open_clip.build_zero_shot_classifier(
        tiny_clip.model, tiny_clip.tokenizer, NAMES, templates.templates, num_classes_per_batch=2
    )
    w_cls = class_weights(text_features(tiny_clip, templates, NAMES, device=CPU))
    assert torch.allclose(w_cls.T, expected, atol=1e-6, rtol=0)


def test_each_feature_is_that_of_its_own_prompt(tiny_clip: OpenedClip) -> None:
    w_raw = text_features(tiny_clip, THREE, NAMES, device=CPU)
    assert (w_raw.shape, w_raw.dtype) == ((3, 5, 32), torch.float32)
    for features, template in zip(w_raw, THREE.templates, strict=True):
        for feature, name in zip(features, NAMES, strict=True):
            alone = tiny_clip.encode_text([template.replace("{}", name)])[0]
            assert torch.allclose(feature, alone, atol=1e-6)


def test_means_are_over_templates_and_over_classes() -> None:
    w_raw, half = torch.eye(4).view(2, 2, 4), 0.5**0.5
    expected_cls = torch.tensor([[half, 0, half, 0], [0, half, 0, half]])
    expected_ctx = torch.tensor([[half, half, 0, 0], [0, 0, half, half]])
    assert torch.allclose(class_weights(w_raw), expected_cls)
    assert torch.allclose(context_weights(w_raw), expected_ctx)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(5)))
def test_context_weights_need_no_order_of_classes(tiny_clip: OpenedClip, order: list[int]) -> None:
    w_raw = text_features(tiny_clip, THREE, NAMES, device=CPU)
    assert torch.equal(context_weights(w_raw[:, order]), context_weights(w_raw))
    shuffled = text_features(tiny_clip, THREE, [NAMES[index] for index in order], device=CPU)
    assert torch.allclose(context_weights(shuffled), context_weights(w_raw), atol=1e-6)
    assert torch.allclose(class_weights(shuffled), class_weights(w_raw)[order], atol=1e-6)


@pytest.mark.usefixtures("cache")
def test_no_batch_is_larger_than_the_bound(tiny_clip: OpenedClip) -> None:
    sizes: list[int] = []

    def counting(texts: list[str], **kwargs: Any) -> Tensor:
        sizes.append(len(texts))
        return tiny_clip.tokenizer(texts, **kwargs)

    counting.context_length = 77  # type: ignore[attr-defined]
    counted = dataclasses.replace(tiny_clip, tokenizer=counting)
    names = [f"thing {number}" for number in range(100)]
    assert text_features(counted, THREE, names, device=CPU).shape == (3, 100, 32)
    assert max(sizes) == prompts.TEXTS_PER_BATCH


def test_on_another_device_only_the_text_side_is_copied_and_the_model_stays_where_it_is(
    tiny_clip: OpenedClip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is a fake: its type is no cpu, and what is moved there stays."""
    moved: list[nn.Module] = []

    def stay(model: nn.Module, device: torch.device, **_: Any) -> nn.Module:
        del device
        moved.append(model)
        return model

    monkeypatch.setattr(nn.Module, "to", stay)
    expected = prompts._encoded(tiny_clip, THREE, NAMES, CPU)
    got = text_features(tiny_clip, THREE, NAMES, device=torch.device("mps"))
    assert torch.equal(got.view(len(expected), -1), expected)
    (copy,) = moved
    assert copy is not tiny_clip.model
    assert not [name for name, _ in copy.named_parameters() if name.startswith("visual")]
    assert isinstance(tiny_clip.model.visual, nn.Module)
    assert len(kept_files(cache)) == 1
    text_features(tiny_clip, THREE, NAMES, device=CPU)
    assert len(kept_files(cache)) == 2, "another device rounds differently"


def test_features_are_in_fp32_without_tf32_whatever_is_set(
    tiny_clip: OpenedClip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del cache
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    seen = watched(
        monkeypatch, OpenedClip, "encode_text", lambda *_: matmul.allow_tf32 or cudnn.allow_tf32
    )
    with arithmetic(CPU, "tf32"):
        text_features(tiny_clip, THREE, NAMES, device=CPU)
        assert torch.backends.cudnn.allow_tf32
    assert seen == [False]


def test_a_prompt_that_would_be_cut_is_refused_by_template_and_class(tiny_clip: OpenedClip) -> None:
    templates = TemplateSet("long", ("a {}", "a " * 70 + "{}"))
    words = r"^template 'a a .*a \{\}' with class 'dog dog .*' is longer than the 77"
    refused(words, text_features, tiny_clip, templates, ["cat", "dog " * 6], device=CPU)
    assert text_features(tiny_clip, templates, ["cat"], device=CPU).shape == (2, 1, 32)


def kept_files(cache: Path) -> list[Path]:
    return sorted((cache / "text_features").iterdir())


def never(*_: object) -> Tensor:
    return pytest.fail("encoded again")


def test_what_is_kept_equals_what_was_computed_bit_for_bit_and_is_not_computed_again(
    tiny_clip: OpenedClip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = prompts._encoded(tiny_clip, THREE, NAMES, CPU).view(3, len(NAMES), -1)
    first = text_features(tiny_clip, THREE, NAMES, device=CPU)
    monkeypatch.setattr(prompts, "_encoded", never)
    renamed = dataclasses.replace(THREE, name="other", domains=("sketch",))
    stored = [text_features(tiny_clip, words, NAMES, device=CPU) for words in (THREE, renamed)]
    assert all(torch.equal(features, computed) for features in (first, *stored))
    assert len(kept_files(cache)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda clip, *rest: (dataclasses.replace(clip, digest="0" * 64), *rest),
        lambda clip, _, names: (clip, TemplateSet("three", ("{}", "a {}", "art of a {}")), names),
        lambda clip, _, names: (clip, TemplateSet("three", THREE.templates[::-1]), names),
        lambda *asked: (*asked[:2], [*NAMES[:-1], "shark"]),
        lambda *asked: (*asked[:2], NAMES[::-1]),
        None,
    ],
    ids=["clip", "template", "order of templates", "class", "order of classes", "revision"],
)
def test_a_change_in_anything_that_matters_is_computed_anew(
    tiny_clip: OpenedClip, cache: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    text_features(tiny_clip, THREE, NAMES, device=CPU)
    asked = (tiny_clip, THREE, NAMES)
    if change is None:
        monkeypatch.setattr(prompts, "TEXT_REVISION", -1)
    else:
        asked = change(*asked)
    got = text_features(*asked, device=CPU)
    assert torch.equal(got, prompts._encoded(*asked, CPU).view(3, len(NAMES), -1))
    assert len(kept_files(cache)) == 2


def test_a_damaged_file_is_computed_anew_and_mended(
    tiny_clip: OpenedClip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = text_features(tiny_clip, THREE, NAMES, device=CPU)
    (file,) = kept_files(cache)
    for damaged in (file.read_bytes()[:-7], b"", b"<html>" * 9):
        file.write_bytes(damaged)
        assert torch.equal(text_features(tiny_clip, THREE, NAMES, device=CPU), expected)
        assert kept_files(cache) == [file]
        with monkeypatch.context() as patch:
            patch.setattr(prompts, "_encoded", never)
            assert torch.equal(text_features(tiny_clip, THREE, NAMES, device=CPU), expected)


HELD_OUT = [(name, domain) for name, folders in FOLDERS.items() for domain in folders]


def contexts(family: str, test: str | None, named: str | None = None) -> TemplateSet:
    default = FAMILIES[family].defaults["prompts.contexts"]
    return prompts.context_set(named or str(default), DataConfig(family=family, test_domain=test))


def marked(templates: TemplateSet, family: str, test: str | None) -> list[str]:
    data = DataConfig(family=family, test_domain=test)
    return prompts.leaked_domains(templates, data, FAMILIES[family].domains)


@pytest.mark.parametrize(("family", "domain"), HELD_OUT)
def test_a_familys_own_contexts_never_name_what_is_held_out(family: str, domain: str) -> None:
    templates = contexts(family, domain)
    assert (named_domains(templates, [domain]), marked(templates, family, domain)) == ((), [])
    assert len(templates.templates) > 5


def test_what_names_the_held_out_domain_goes_and_all_else_stays() -> None:
    everything = template_set("domain_words").templates
    known = contexts("pacs", "sketch")
    assert set(everything) - set(known.templates) == {"a sketch of a {}"}
    assert "sketch" not in known.domains
    assert {"cartoon", "photo", "art painting"} <= set(known.domains)
    assert known.name == "known_domain_words without sketch"
    assert len({contexts("domain_net", domain).digest for domain in FOLDERS["domain_net"]}) == 6
    assert contexts("vlcs", "sun09", named=KNOWN_WORDS) is template_set(KNOWN_WORDS)
    assert template_set(KNOWN_WORDS).digest == template_set("domain_words").digest
    assert contexts("icon_shift", None, named=KNOWN_WORDS) is template_set(KNOWN_WORDS)


def test_another_set_is_taken_as_it_is_and_marked_by_what_is_held_out_or_by_all() -> None:
    words = contexts("pacs", "sketch", named="domain_words")
    assert words is template_set("domain_words")
    assert marked(words, "pacs", "sketch") == ["sketch"]
    assert marked(words, "pacs", "art_painting") == ["art_painting"]
    training = TemplateSet("of training", ("a photo of a {}", "a cartoon of a {}"))
    assert marked(training, "pacs", "sketch") == []
    assert marked(TemplateSet("icons", ("a pixel {}",)), "icon_shift", None) == ["pixel"]
    mine = TemplateSet("mine", ("a sketch of a {}", "a {}, a photo"))
    message = "nothing is left of mine without sketch, photo"
    refused(message, prompts.without, mine, ["sketch", "photo"])


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_text_file_has_one_template_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "mine.txt", "# my set\na photo of a {}\n\n  the {}, é \n")
    assert read_template_file(path) == TemplateSet("mine", ("a photo of a {}", "the {}, é"), ())
    path = written(tmp_path, "windows.txt", b"\xef\xbb\xbfa {}\r\nthe {}\r\n")
    assert read_template_file(path).templates == ("a {}", "the {}")


def test_yaml_gives_templates_and_perhaps_name_and_domains(tmp_path: Path) -> None:
    text = 'name: styles\ntemplates: ["a sketch of a {}", "a {}"]\ndomains: [sketch]\n'
    for file in ("f.yaml", "f.yml"):
        styles = TemplateSet("styles", ("a sketch of a {}", "a {}"), ("sketch",))
        assert read_template_file(written(tmp_path, file, text)) == styles
    path = written(tmp_path, "own.yaml", 'templates:\n  - a {} here\n  - "{}"\n')
    assert read_template_file(path) == TemplateSet("own", ("a {} here", "{}"), ())


BRACES = "has other braces; the class is written {}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a photo", "'a photo' has no {}; it takes exactly one"),
        ("{} and {}", "'{} and {}' has 2 times {}; it takes exactly one"),
        *((text, BRACES) for text in ("a {domain} of a {}", "a {c}", "a {0}", "a {{}}", "a } {}")),
        ("", "is empty"),
        ("  ", "is empty"),
        ("a {}", "'a {}' is in the set twice"),
    ],
)
def test_each_mistake_in_a_template_has_its_message(template: str, message: str) -> None:
    ((index, mistake),) = prompts.mistakes(["a {}", template])
    assert index == 1
    assert message in mistake


@given(st.text("{} ab", max_size=8))
def test_a_template_passes_with_one_placeholder_and_no_other_brace(template: str) -> None:
    parts = template.split("{}")
    good = len(parts) == 2 and not any(brace in part for part in parts for brace in "{}")
    assert (not list(prompts.mistakes([template]))) == good


def test_all_mistakes_of_a_text_file_come_at_once_with_their_places(tmp_path: Path) -> None:
    path = written(tmp_path, "mine.txt", "# set\na photo\n\na {}\na {x}\na {}\n")
    places = [line.split(": ")[:2] for line in refusal(read_template_file, path).splitlines()]
    assert places == [[str(path), f"templates[{index}]"] for index in (0, 2, 3)]


NO_MAPPING = "must be a mapping with `templates:`"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("templates: []", ["holds no template"]),
        *((text, [NO_MAPPING]) for text in ("", '- "a {}"', "a photo of a {}")),
        ("domains: [a]", ["templates: is required"]),
        ("templates: a {}", ["templates: must be a list"]),
        ("templates:\n  - {}", ["templates[0]: must be a valid string, got {}"]),
        ("templates: [no, 3, '{}']", ["[0]: 'no' has no {}", "[1]: '3' has no {}"]),
        ("templates: &a [*a]", ["not YAML: found unconstructable recursive node"]),
        (
            "templates: ['a {}']\ntemplate: 1\ndomains: sketch\nname: [x]",
            [": name: must be a valid string", ": domains: must be a list", "mean 'templates'?"],
        ),
        ("templates: [\n'a {}'\n", ["not YAML: while parsing a flow sequence"]),
        ("templates:\n\t- a {}", ["line 2, column 1"]),
        ("a: !!python/object/apply:os.system ['x']\ntemplates: [\"a {}\"]", ["unknown field 'a'"]),
        ("[" * 600, ["not YAML: maximum recursion depth"]),
        (r'name: "\UFFFFFFFF"', ["not YAML: "]),
        (r'templates: ["\ud800 {}"]', ["holds an impossible character"]),
        ("%YAML 1." + "9" * 5000 + "\n---\n", ["not YAML: "]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_mistakes_in_yaml_are_told_by_place(tmp_path: Path, text: str, messages: list[str]) -> None:
    path = written(tmp_path, "mine.yaml", text)
    lines = refusal(read_template_file, path).splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(str(path))
        assert message in line


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    refused(f"^{Path.cwd() / 'no.txt'} cannot be read: No such", read_template_file, Path("no.txt"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(RequestError, match=r"folder\.txt cannot be read: Is a directory"):
        read_template_file(tmp_path / "folder.txt")
    for name, content, message in (
        ("latin.txt", b"caf\xe9 {}", r"latin\.txt is not text in UTF-8"),
        (
            "big.txt",
            b"a" * (prompts.MAX_BYTES + 1),
            r"big\.txt has \d+ bytes; at most \d+ are read",
        ),
        ("mine.json", b"{}", r"ends in one of \.txt, \.yaml, \.yml"),
        ("mine.txt", b"", r"holds no template; one a line, such as"),
        ("mine.txt", b"\n# only a comment\n", r"holds no template; one a line, such as"),
    ):
        refused(message, read_template_file, written(tmp_path, name, content))


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200), ending=st.sampled_from([".txt", ".yaml"]))
def test_any_bytes_are_a_set_or_one_refusal(tmp_path: Path, content: bytes, ending: str) -> None:
    path = written(tmp_path, f"any{ending}", content)
    message, templates = "", tuple[str, ...]()
    try:
        templates = read_template_file(path).templates
    except RequestError as error:
        message = str(error)
    assert (str(path) in message) != bool(templates)
    assert all(template.count("{}") == 1 for template in templates)


@pytest.mark.parametrize(
    "name", ["9" * 5000, "2024-99-99", f"1{':1' * 400_000}"], ids=["number", "date", "time"]
)
def test_what_looks_like_a_number_or_a_date_is_text(tmp_path: Path, name: str) -> None:
    """Python would take any time to make one of the last."""
    path = written(tmp_path, "mine.yaml", f"name: {name}\ntemplates: ['a {{}}']")
    assert read_template_file(path).name == name


def test_many_templates_are_checked_in_linear_time() -> None:
    started = time.process_time()
    assert not list(prompts.mistakes([f"{number} {{}}" for number in range(50_000)]))
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", ["mine.txt", "mine.yaml"])
def test_a_device_and_a_pipe_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    refused("is not a regular file", read_template_file, tmp_path / name)
    os.mkfifo(tmp_path / f"pipe.{name}")
    refused("is not a regular file", read_template_file, tmp_path / f"pipe.{name}")
