"""Make requirements.lock from pyproject.toml, and pick from it what one environment needs.

    python tools/lock.py compile [--upgrade]    # with uv, which the extra `dev` brings
    python tools/lock.py select cluster         # for pip install --no-deps --require-hashes -r
    python tools/lock.py torch                  # the requirements that are not locked

Besides `compile` it needs nothing but Python: the builder of an image has nothing else yet.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"
PYTHON = "3.11.5"
"""The oldest release that every package admits; the extra `docs` needs a later one than `run`."""
TORCH = re.compile(r"(torch|torchvision|triton|nvidia-\S+|cuda-\S+)==")
"""Which build of torch is right depends on the machine, and so do the libraries it brings."""
HEADER = """\
# The versions that this release was tested with, and the hashes of their files. The last line of
# each says in which environments it is; `python tools/lock.py select NAME` prints those of one.
# torch, torchvision and what only their builds bring are left out: the right build depends on the
# machine. Made by `python tools/lock.py compile`.
"""
OPTION = "--only-binary :all:\n"
"""A source archive would be built by tools that have no hash here."""
_NAMES = "    # in "


def environments(pyproject: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the requirements of each environment, by its name."""
    project = pyproject["project"]
    run = project["dependencies"]
    extras = {  # without the one that names the others
        extra: [text for text in texts if not text.startswith(project["name"])]
        for extra, texts in project["optional-dependencies"].items()
    }
    return {
        "build-system": pyproject["build-system"]["requires"],
        "run": run,
        "cluster": [*run, *extras["ray"], *extras["server"], *extras["cluster"]],
        "server": extras["server"],
        "dev": [*run, *(text for texts in extras.values() for text in texts)],
    }


def select(lock: str, names: Collection[str]) -> str:
    """Return the lines of the lock that belong to any of the environments."""
    return OPTION + "".join(text for text in _pins(lock) if {*names} & {*_names(text)})


def unlocked(pyproject: Mapping[str, Any]) -> list[str]:
    """Return the requirements of torch and torchvision."""
    return [text for text in pyproject["project"]["dependencies"] if text.startswith("torch")]


def compile_lock(pyproject: Mapping[str, Any], lock: str, options: Collection[str] = ()) -> str:
    """Return the lock of `pyproject`; the versions of `lock` stay where they fit.

    `options` are uv's, such as `--upgrade`. Raises CalledProcessError where the requirements cannot
    be met together.
    """
    wanted = environments(pyproject)
    together = [text for texts in wanted.values() for text in texts]
    hashed = _resolve(together, lock, ["--generate-hashes", *options])
    members = {
        name: {_package(text) for text in _pins(_resolve(texts, hashed))}
        for name, texts in wanted.items()
    }
    pins = [text for text in _pins(hashed) if not TORCH.match(text)]
    # It repeats the platforms of [tool.uv].
    common, _ = Counter(_marker(text) for text in pins).most_common(1)[0]
    parts = [HEADER, OPTION]
    for text in pins:
        names = [name for name, packages in members.items() if _package(text) in packages]
        parts.append(f"{text.replace(common, '', 1)}{_NAMES}{', '.join(names)}\n")
    return "".join(parts)


def _resolve(requirements: Collection[str], lock: str, options: Collection[str] = ()) -> str:
    """Return the packages that meet `requirements` on all platforms, at the versions of `lock`."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "requirements.txt")
        output.write_text(lock)  # uv prefers what stands in the file that it writes
        subprocess.run(
            [
                *(sys.executable, "-m", "uv", "pip", "compile", "-", "--output-file", str(output)),
                *("--universal", "--python-version", PYTHON, "--only-binary", ":all:"),
                *("--no-header", "--no-annotate", "--quiet", *options),
            ],
            input="\n".join(requirements),
            cwd=ROOT,  # its pyproject.toml names the platforms
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return output.read_text()


def _pins(lock: str) -> Iterator[str]:
    """Yield the text of each package's entry."""
    yield from re.findall(r"^[\w.-]+==.*\n(?:    .*\n)*", lock, re.MULTILINE)


def _names(pin: str) -> list[str]:
    """Return the environments that the package is in."""
    return pin.splitlines()[-1].removeprefix(_NAMES).split(", ")


def _package(pin: str) -> str:
    return pin.partition("==")[0]


def _marker(pin: str) -> str:
    """Return a pin's marker, such as ` ; python_version < '3.12'`; empty without one."""
    return re.sub(r"^[^ ]+| \\$", "", pin.partition("\n")[0])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("compile", help="make requirements.lock anew")
    making.add_argument("--upgrade", action="store_true", help="to the newest versions that fit")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    picking = commands.add_parser("select", help="print what an environment needs")
    picking.add_argument("names", nargs="+", choices=[*environments(pyproject)])
    commands.add_parser("torch", help="print the requirements that are not locked")
    arguments = parser.parse_args()
    if arguments.command == "compile":
        options = ["--upgrade"] if arguments.upgrade else []
        LOCK.write_text(compile_lock(pyproject, LOCK.read_text(), options))
    elif arguments.command == "select":
        sys.stdout.write(select(LOCK.read_text(), arguments.names))
    else:
        sys.stdout.write("\n".join(unlocked(pyproject)) + "\n")


if __name__ == "__main__":
    main()
