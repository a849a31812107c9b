"""Draws COUNT docstrings by SEED, to judge whether each is understood without the code."""

import ast
import random
import sys
from pathlib import Path


def docstrings(package: str) -> list[str]:
    """List file, class, name, arguments and docstring of every documented function of a package."""
    return [
        f"{path} {getattr(owner, 'name', '')} {node.name}({ast.unparse(node.args)})\n{text}\n"
        for path in sorted(Path(package).rglob("*.py"))
        for owner in ast.walk(ast.parse(path.read_text("utf-8")))
        for node in ast.iter_child_nodes(owner)
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node))
    ]


if __name__ == "__main__":
    count, seed = map(int, sys.argv[1:])
    entries = [text for name in ("carft_core", "sweeps", "tracking") for text in docstrings(name)]
    sys.stdout.write("\n".join(random.Random(seed).sample(entries, count)))
