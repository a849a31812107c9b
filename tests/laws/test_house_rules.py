"""The house rules of CONTRIBUTING.md that a program can check."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grimp
import pytest

ROOT = Path(__file__).parents[2]
TREES = {
    path: ast.parse(path.read_text())
    for package in ("carft_core", "sweeps", "tracking")
    for path in sorted((ROOT / package).rglob("*.py"))
}
BANNED_NAMES = re.compile(r"(?:utils?|helpers?|common|misc|manager)\.py$")


def breaches(rule: Callable[[Path, ast.Module], Any]) -> dict[str, Any]:
    """Each source file to what the rule finds in it, where it finds something.

    One test for all files: with a test for each, pytest takes longer than the rules.
    """
    findings = {path: rule(path, tree) for path, tree in TREES.items()}
    return {str(path.relative_to(ROOT)): finding for path, finding in findings.items() if finding}


def test_a_module_begins_with_one_claim_is_named_for_a_concept_and_leaves_nothing_for_later() -> (
    None
):
    def wrong(path: Path, tree: ast.Module) -> list[str]:
        first = (ast.get_docstring(tree) or "").split("\n\n")[0]
        claims = "\n" not in first and first.endswith((".", "?"))
        problems = [] if claims else [first]
        problems += BANNED_NAMES.findall(path.name)
        return problems + re.findall(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())

    assert breaches(wrong) == {}


def test_who_swallows_everything_says_why() -> None:
    def silent(path: Path, tree: ast.Module) -> list[int]:
        lines = path.read_text().splitlines()
        handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
        wide = [handler for handler in handlers if swallows_everything(handler)]
        spans = {handler.lineno: lines[handler.lineno - 1 : handler.end_lineno] for handler in wide}
        return [at for at, span in spans.items() if not any("#" in line for line in span)]

    assert breaches(silent) == {}


def swallows_everything(handler: ast.ExceptHandler) -> bool:
    caught = None if handler.type is None else ast.unparse(handler.type)
    raises = any(isinstance(node, ast.Raise) for node in ast.walk(handler))
    return caught in {None, "Exception", "BaseException"} and not raises


def test_images_are_opened_in_one_place() -> None:
    """With its formats and limits. What MLflow serves brings its own, and the same, along."""

    def opens(_: Path, tree: ast.Module) -> list[int]:
        parts = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        names = {"Image.open", "PIL.Image.open", "Image.frombuffer"}
        return [part.lineno for part in parts if ast.unparse(part) in names]

    served = "tracking/store/pyfunc_model.py"
    assert {*breaches(opens)} == {"carft_core/data/images.py", served}
    settings = {}
    for place in ("carft_core/data/images.py", served):
        values = {
            target.id: ast.literal_eval(node.value)
            for node in TREES[ROOT / place].body
            if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Constant, ast.Tuple))
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        names = ("FORMATS", "MEGAPIXELS", "LONGEST")
        settings[place] = {name: values[name] for name in names}
    assert settings[served] == settings["carft_core/data/images.py"]


OPENS_NO_FILE_OF_A_HOME = {
    "carft_core/data/bank.py": "the user's cache, with O_NOFOLLOW of its own",
    "carft_core/models/weights.py": "weights that the user names",
    "carft_core/data/listing.py": "the data, which may be links",
    "carft_core/data/families/icon_shift.py": "the product's own images",
    "carft_core/files.py": "what it has written itself, to wait for the disk",
    "carft_core/config/user_code.py": "modules that are imported",
    "carft_core/runs/folder.py": "a temporary file that it has just made",
    "sweeps/secrets.py": "files that variables name",
    "sweeps/engines/ray_tune.py": "Ray's own folder",
    "sweeps/spec/user_code.py": "modules that are imported",
    "tracking/store/mlflow_client.py": "what it has downloaded",
    "tracking/store/mlflow_models.py": "a model that it has made",
    "tracking/store/pyfunc_model.py": "a model that MLflow serves",
    "tracking/ui_app.py": "MLflow's own page",
}
"""Who opens files by other means than `regular_files`, and what it opens."""


def test_files_of_a_home_are_opened_in_one_place() -> None:
    """Where no link leads elsewhere, no pipe is waited for, and nothing is read without end."""

    def opens(_: Path, tree: ast.Module) -> list[int]:
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        return [call.lineno for call in calls if is_opening(call)]

    assert {*breaches(opens)} == {*OPENS_NO_FILE_OF_A_HOME}


def is_opening(node: ast.Call) -> bool:
    """Whether a call opens a file by its path, unless it is a new one, or one that the source names
    itself: the system's, or the product's own.
    """
    modes = [ast.unparse(word).strip("'") for word in node.args[:1]]
    match node.func:
        case ast.Name("open") | ast.Attribute(ast.Name("os"), "open"):
            return not is_named_in_source(node.args[0])
        case ast.Attribute(path, "read_text" | "read_bytes"):
            return not is_named_in_source(path)
        case ast.Attribute(path, "open") if modes in ([], ["r"], ["rb"], ["w"], ["wb"], ["ab"]):
            return not is_named_in_source(path)
    return False


def is_named_in_source(path: ast.expr) -> bool:
    """Whether a path begins with a constant: `CGROUP / "cpu.max"`, `Path(os.devnull)`."""
    match path:
        case ast.BinOp(path, _, _) | ast.Call(ast.Attribute(path), _, _):
            return is_named_in_source(path)
        case ast.Call(ast.Name("Path"), [place], _):
            return is_named_in_source(place)
        case ast.Name(name):
            return name.isupper()
        case ast.JoinedStr([ast.Constant(text), *_]) | ast.Constant(text):
            return str(text).startswith("/proc/")
        case ast.Attribute():
            return ast.unparse(path) == "os.devnull"
    return False


def test_no_modules_of_the_core_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("carft_sweep", exclude_type_checking_imports=False, cache_dir=None)
    circles = [
        (module, other)
        for module in sorted(graph.modules)
        if module.startswith("carft_sweep.carft_core.")
        for other in graph.find_modules_directly_imported_by(module)
        if graph.chain_exists(importer=other, imported=module)
    ]
    assert circles == []


@pytest.mark.parametrize("folder", ["algorithms", "merges"])
def test_files_of_a_registry_know_only_their_base(folder: str) -> None:
    package = f"carft_sweep.carft_core.{folder}"
    for path in sorted((ROOT / "carft_core" / folder).glob("*.py")):
        if path.stem == "__init__":
            continue
        imported = {name for node in ast.walk(TREES[path]) for name in imports(node)}
        own = {name for name in imported if name.startswith(package)}
        assert own <= {f"{package}.base"}, path.name


def imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return []
