"""What people type into the site's search is in a heading of the page that answers."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
ANSWERS = {
    "wandb": "from-wandb",
    "W&B": "from-wandb",
    "OOM": "troubleshooting",
    "CUDA out of memory": "troubleshooting",
    "database locked": "troubleshooting",
    "openai weights": "troubleshooting",
    "delete": "tracking",
    "remove": "commands",
    "ViT-B-32": "models",
    "resume": "commands",
    "slurm": "slurm",
    "kubernetes": "kubernetes",
    "docker": "server",
    "LaTeX": "tables",
    "notebook": "notebooks",
    "early termination": "search",
}


def test_what_is_typed_is_in_a_heading_of_the_page_that_answers() -> None:
    for words, page in ANSWERS.items():
        text = (DOCS / f"{page}.md").read_text()
        assert not re.match(r"---\nsearch:\n  exclude: true\n", text), page
        headings = " | ".join(re.findall(r"^#+ (.+)$", text, re.MULTILINE))
        assert words.lower() in headings.lower(), words
