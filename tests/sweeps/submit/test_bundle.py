"""The archive: the same files, the same bytes; nothing secret, nothing too large."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from carft_core.errors import RequestError
from sweeps.submit.package import Bundle, Tree, as_it_is, file_at, pack
from tests.sweeps.submit.conftest import Git


def tree_of(folder: Path) -> Tree:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Tree(folder, tuple(file_at(folder, name) for name in names))


def packed(bundle: Bundle) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(bundle.data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_same_files_have_the_same_name_whenever_they_were_written(project: Path) -> None:
    first = pack(tree_of(project))
    for path in project.iterdir():
        os.utime(path, (1, 1))
    again = pack(Tree(project, tuple(reversed(tree_of(project).files))))
    assert first.uri == again.uri
    assert first.uri.startswith("gcs://_ray_pkg_")
    assert packed(first)["mine.py"] == b"X = 1\n"
    (project / "mine.py").write_text("X = 2\n")
    assert pack(tree_of(project)).uri != first.uri


def test_executable_files_stay_so(project: Path) -> None:
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o700)
    bundle = pack(tree_of(project))
    with zipfile.ZipFile(io.BytesIO(bundle.data)) as archive:
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
    assert modes["run.sh"] == 0o755
    assert modes["mine.py"] == 0o644


def test_what_stays_is_told_with_the_reason(git: Git, project: Path) -> None:
    del git
    for name in ("home/runs/a", ".carft/id", "data/big.bin", "key.pem", "notes.txt"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("the-password" if name == "notes.txt" else name)
    (project / "kept.txt").write_text("kept")
    bundle = pack(
        as_it_is(project), homes=[project / "home"], exclude=["data"], secrets=["the-password"]
    )
    assert set(packed(bundle)) == {".gitignore", "kept.txt", "mine.py", "tiny.yaml"}
    assert set(bundle.names) == set(packed(bundle))
    assert bundle.notes == (
        "new: kept.txt",
        "not sent: .carft/id (in a home)",
        "not sent: data/big.bin (--exclude data)",
        "not sent: home/runs/a (in a home)",
        "not sent: key.pem (its name is one for secrets)",
        "not sent: notes.txt (holds a secret of this environment)",
    )


def test_too_much_is_refused_with_the_largest_files(project: Path) -> None:
    (project / "weights.bin").write_bytes(bytes(3_000_000))
    with pytest.raises(RequestError, match=r"3\.0 MB are too much to send") as refused:
        pack(tree_of(project), most=10**6)
    assert "  3.0 MB  weights.bin\n  0.1 kB  tiny.yaml" in str(refused.value)
    assert "--exclude PATTERN" in str(refused.value)
    assert pack(tree_of(project), most=10**6, exclude=["*.bin"]).size < 1000


def test_a_clone_of_the_product_brings_it_and_a_package_of_its_name_is_refused(
    project: Path,
) -> None:
    assert not pack(tree_of(project)).has_the_product
    (project / "sweeps").mkdir()
    (project / "sweeps" / "__init__.py").write_text("")
    with pytest.raises(RequestError, match="hides carft-sweep's own"):
        pack(tree_of(project))
    for name in ("sweeps/__main__.py", "carft_core/__init__.py", "tracking/__init__.py"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("")
    assert pack(tree_of(project)).has_the_product
