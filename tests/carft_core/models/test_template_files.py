"""A user's own templates: both forms, and one message for each mistake, with its place."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.prompts import (
    MAX_BYTES,
    TemplateSet,
    mistakes,
    read_template_file,
)


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
    ((index, found),) = mistakes(["a {}", template])
    assert index == 1
    assert message in found


@given(st.text("{} ab", max_size=8))
def test_a_template_passes_exactly_when_it_has_one_placeholder_and_no_other_brace(
    template: str,
) -> None:
    parts = template.split("{}")
    good = len(parts) == 2 and not any(brace in part for part in parts for brace in "{}")
    assert (not list(mistakes([template]))) == good


def test_all_mistakes_of_a_text_file_come_at_once_with_their_places(tmp_path: Path) -> None:
    path = written(tmp_path, "mine.txt", "# set\na photo\n\na {}\na {x}\na {}\n")
    with pytest.raises(RequestError) as caught:
        read_template_file(path)
    places = [line.split(": ")[:2] for line in str(caught.value).splitlines()]
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
        (
            "templates:\n  - no\n  - 3\n  - a {}",
            ["templates[0]: 'no' has no {}", "templates[1]: '3' has no {}"],
        ),
        ("templates: &a [*a]", ["not YAML: found unconstructable recursive node"]),
        (
            "templates: ['a {}']\ntemplate: 1\ndomains: sketch\nname: [x]",
            [
                "mine.yaml: name: must be a valid string",
                "mine.yaml: domains: must be a list",
                "unknown field 'template'; did you mean 'templates'?",
            ],
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
def test_each_mistake_in_yaml_is_told_with_its_place(
    tmp_path: Path, text: str, messages: list[str]
) -> None:
    path = written(tmp_path, "mine.yaml", text)
    with pytest.raises(RequestError) as caught:
        read_template_file(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert line.startswith(str(path))
        assert message in line


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"^{Path.cwd() / 'no.txt'} cannot be read: No such"):
        read_template_file(Path("no.txt"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(RequestError, match=r"folder\.txt cannot be read: Is a directory"):
        read_template_file(tmp_path / "folder.txt")
    for name, content, message in (
        ("latin.txt", b"caf\xe9 {}", r"latin\.txt is not text in UTF-8"),
        ("big.txt", b"a" * (MAX_BYTES + 1), r"big\.txt has \d+ bytes; at most \d+ are read"),
        ("mine.json", b"{}", r"ends in one of \.txt, \.yaml, \.yml"),
        ("mine.txt", b"", r"holds no template; one a line, such as"),
        ("mine.txt", b"\n# only a comment\n", r"holds no template; one a line, such as"),
    ):
        with pytest.raises(RequestError, match=message):
            read_template_file(written(tmp_path, name, content))


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200), ending=st.sampled_from([".txt", ".yaml"]))
def test_any_bytes_are_a_set_or_one_refusal(tmp_path: Path, content: bytes, ending: str) -> None:
    path = written(tmp_path, f"any{ending}", content)
    refusal = ""
    templates: tuple[str, ...] = ()
    try:
        templates = read_template_file(path).templates
    except RequestError as error:
        refusal = str(error)
    assert (str(path) in refusal) != bool(templates)
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
    assert not list(mistakes([f"{number} {{}}" for number in range(50_000)]))
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", ["mine.txt", "mine.yaml"])
def test_a_device_and_a_pipe_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(RequestError, match="is not a regular file"):
        read_template_file(tmp_path / name)
    os.mkfifo(tmp_path / f"pipe.{name}")
    with pytest.raises(RequestError, match="is not a regular file"):
        read_template_file(tmp_path / f"pipe.{name}")
