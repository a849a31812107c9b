"""The report page of sweeps, from what their home keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from carft_core.files import user_cache, write_atomically
from sweeps.home import Home
from sweeps.mirror import Kept
from tracking.compare import Comparison

if TYPE_CHECKING:
    from tracking.evidence import Evidence

FILE = "report.html"


@dataclass(frozen=True)
class Page:
    """A report as HTML, and what its charts are drawn from."""

    text: str
    evidence: Evidence

    def write(self, path: Path) -> None:
        """Atomically. Raises OSError where it cannot be written."""
        write_atomically(path, lambda file: file.write_text(self.text, encoding="utf-8"))


def page(
    home: Home, sweeps: Sequence[Kept], comparison: Comparison, *, options: Sequence[str] = ()
) -> Page:
    """The report of one sweep, or of several that were compared as one.

    `options` are those of the command that makes it again, beside the sweeps.
    """
    from sweeps.importance import importance
    from sweeps.pictures import look_at_data
    from sweeps.provenance import provenance
    from tracking.evidence import gather
    from tracking.page import document

    data = look_at_data(home, sweeps, comparison)
    # Trials of several sweeps share their numbers, and their spaces are not one.
    shares = importance(sweeps[0], comparison) if len(sweeps) == 1 else None
    evidence = gather(comparison, importance=shares, class_names=data.class_names)
    text = document(
        comparison,
        evidence,
        description=sweeps[0].spec["description"] if len(sweeps) == 1 else "",
        pictures=data.pictures,
        provenance=provenance(home, sweeps, comparison, options),
        cache=user_cache(),
    )
    return Page(text, evidence)


def keep(
    home: Home, sweep: Kept, comparison: Comparison, note: Callable[[str], None]
) -> list[Path]:
    """Write the page into the sweep's folder; the file, or nothing when that failed.

    Why it failed is noted: the results that it would show are there without it.
    """
    file = home.sweep(sweep.name) / FILE
    try:
        page(home, [sweep], comparison).write(file)
    except Exception as error:  # whatever goes wrong in a picture, the sweep has ended well
        note(f"the report was not written ({type(error).__name__}: {error})")
        return []
    return [file]
