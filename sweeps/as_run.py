"""A sweep as it was last run: all that its name must lead to, so that it can go on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carft_core.errors import RequestError
from carft_core.files import read_json, write_json

if TYPE_CHECKING:
    from sweeps.spec import SweepSpec

FILE = "execution.json"
COPY = "sweep.yaml"
"""The sweep file as it was run."""


@dataclass(frozen=True)
class AsRun:
    """What `run` was given. The text of the file lies beside it."""

    file: str
    """The sweep file, absolute."""
    overrides: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    folder: str | None = None
    """The working folder: paths in a trial, such as `data.root`, are relative to it."""
    address: str | None = None
    """Of the Ray cluster, where `--address` named one."""

    @classmethod
    def of(cls, spec: SweepSpec) -> AsRun:
        """Of a sweep that this process runs."""
        file = str(spec.source_path.absolute())
        return cls(file, tuple(spec.overrides), tuple(spec.imports), str(Path.cwd()))

    @classmethod
    def read(cls, folder: Path) -> AsRun:
        """Of the sweep in `folder`. Raises RequestError when too little of it was kept."""
        known: Mapping[str, Any] | None = read_json(folder / FILE)
        if known is None or not (folder / COPY).exists():
            raise RequestError(
                f"how the sweep {folder.name} was run is not kept in {folder}; go on with it by "
                "its file: carft-sweep run FILE"
            )
        return cls(
            file=known["file"],
            overrides=tuple(known.get("overrides", ())),
            imports=tuple(known.get("imports", ())),
            folder=known.get("folder"),
            address=known.get("address"),
        )

    def write(self, folder: Path) -> None:
        """Keep it with the sweep in `folder`; the address there stays where this has none."""
        known = read_json(folder / FILE) or {}
        address = self.address or known.get("address")
        write_json(folder / FILE, {**asdict(self), "address": address})

    def changed(self, key: str, value: object) -> AsRun:
        """The same with one key of the file overridden, in the place of earlier overrides of it."""
        others = [one for one in self.overrides if one.partition("=")[0].strip() != key]
        return replace(self, overrides=(*others, f"{key}={value}"))

    def load(self, folder: Path) -> tuple[SweepSpec, str | None]:
        """The sweep in `folder` as it was run; and what to say when its file is not what it was.

        Raises RequestError.
        """
        from sweeps.spec import load_spec
        from sweeps.yaml_lines import read_text

        kept = read_text(folder / COPY)
        if not Path(self.file).exists():
            note = f"{self.file} is gone; the sweep goes on with the file as it was run"
        else:
            note = (
                f"{self.file} has changed since; the sweep goes on with the file as it was run. "
                f"To take up the changes: carft-sweep run {self.file}"
            )
            # The file itself where it is the same: its copy hides what is secret in it.
            with contextlib.suppress(RequestError):
                spec = load_spec(self.file, self.overrides, self.imports)
                if spec.text == kept:
                    return spec, None
        return load_spec(self.file, self.overrides, self.imports, text=kept), note

    @contextlib.contextmanager
    def in_its_folder(self) -> Iterator[str | None]:
        """Work where `run` did; what to say when that folder is gone."""
        before, there = Path.cwd(), Path(self.folder or Path(self.file).parent)
        try:
            os.chdir(there)
        except OSError:
            yield f"{there} is gone, where the sweep was run; relative paths are sought in {before}"
            return
        try:
            yield None
        finally:
            os.chdir(before)


def keep_address(folder: Path, address: str | None) -> None:
    """Keep the cluster's address, or that none was given, with the sweep in `folder`.

    Whoever holds the claim does it first: only the command line knows the address. One that
    carries a user or a password is not kept.
    """
    known = read_json(folder / FILE) or {}
    is_secret = address is not None and "@" in address
    write_json(folder / FILE, {**known, "address": None if is_secret else address})
