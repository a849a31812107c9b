"""A sweep as a job of Ray's."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from carft_core.errors import RequestError
from sweeps.cli.parser import overrides, parse
from sweeps.spec.spec import FOLDER, SweepSpec, load_spec, locate
from sweeps.spec.user_code import resolve
from sweeps.submit.client import COMMIT, SWEEP, USER, JobsApi
from sweeps.submit.package import (
    Bundle,
    Tree,
    Variables,
    as_committed,
    as_it_is,
    as_needed,
    own_files,
    pack,
    repository_of,
    requirements,
    runtime_env,
    secret_values,
    shown,
    variables,
    word_has_password,
)
from tracking.errors import ServiceUnreachable
from tracking.location import HOME_VARIABLE, home_folder
from tracking.provenance import SOURCE_COMMIT, user

PYTHON = "python"
_REPEATED = (("overrides", "--set"), ("profiles", "--profile"))
_ONCE = (("data_root", "--data-root"), ("parallel", "--parallel"), ("timeout", "--timeout"))
_FLAGS = (("fresh", "--fresh"), ("quiet", "--quiet"))


def forwarded_options(arguments: argparse.Namespace) -> list[str]:
    """Those of `submit` that `run` has as well, then what stood behind `--`."""
    words: list[str] = []
    for name, option in _REPEATED:
        words += [word for value in getattr(arguments, name) for word in (option, value)]
    for name, option in _ONCE:
        value = getattr(arguments, name)
        words += [] if value is None else [option, value]
    words += [option for name, option in _FLAGS if getattr(arguments, name)]
    return words + list(arguments.more)


def entrypoint_command(
    file: Path | str,
    home: str,
    options: Sequence[str],
    *,
    root: Path | None = None,
    imports: Sequence[str] = (),
    python: str = PYTHON,
) -> str:
    """`cd sub && exec python -m sweeps run FILE --address auto --home HOME ...`, for a shell.

    `root` is the folder that is sent; None where nothing is. `imports` go with `--import`. Paths
    are relative to the current folder, there as here. Raises RequestError for a file outside of
    the root, and for a password among the options.
    """
    root = None if root is None else root.resolve()
    here = Path.cwd().resolve()
    start = here if root is not None and here.is_relative_to(root) else root
    shown = file if isinstance(file, str) else _there(file, root, start)
    words = [python, "-m", "sweeps", "run", shown, "--address", "auto", "--home", home]
    for item in imports:
        moved = _there(Path(item), root, start) if Path(item).is_absolute() else item
        words += ["--import", moved]
    words += options
    if any(map(word_has_password, words)):
        raise RequestError(
            "an option has an address with a password, and a job's command can be read by all who "
            "see the cluster: give it as a secret (--secret, or in the environment of the head)"
        )
    return "".join([*_step_into(root, start), f"exec {shlex.join(words)}"])


def _step_into(root: Path | None, start: Path | None) -> Iterator[str]:
    if root is not None and start is not None and start != root:
        folder = shlex.quote(start.relative_to(root).as_posix())
        yield f"mkdir -p {folder} && cd {folder} && "


def _there(path: Path, root: Path | None, start: Path | None) -> str:
    path = path.parent.resolve() / path.name
    if root is None or start is None or not path.is_relative_to(root):
        raise RequestError(f"{path} lies outside of what is sent ({root or 'nothing'})")
    return Path(os.path.relpath(path, start)).as_posix()


OLDEST = (2, 44)
"""Of the versions of Ray that the driver runs with."""
Note = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is wanted, as far as this machine can tell that it is right."""

    spec: SweepSpec
    file: Path | str
    """The sweep file, or a recipe's name."""
    imports: tuple[str, ...]
    home: str
    options: tuple[str, ...]

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Request:
        """Read and validate the sweep here, before anything is sent. Raises RequestError."""
        if arguments.file is None:
            raise RequestError(
                "submit what? Give a sweep file, or --status, --logs, --stop or --list"
            )
        home = _home(arguments.home)
        options = forwarded_options(arguments)
        run = _as_run(arguments, options)
        modules = resolve([*arguments.imports, *run.imports], Path.cwd())
        spec = load_spec(arguments.file, overrides(run), modules)
        if spec.engine == "local":
            raise RequestError("engine: local would leave the cluster idle; say auto or ray")
        found = locate(arguments.file)
        is_recipe = found.parent == FOLDER and not Path(arguments.file).is_file()
        file = found.stem if is_recipe else found
        return cls(spec, file, tuple(modules), home, tuple(options))

    @property
    def sweep_file(self) -> Path | None:
        """The user's own file; None for a recipe."""
        return self.file if isinstance(self.file, Path) else None

    def tree(self, *, only_committed: bool) -> Tree:
        """The files around the sweep: the repository's, or without one those that it needs."""
        where = Path.cwd() if self.sweep_file is None else self.sweep_file.parent
        root = repository_of(where)
        if root is not None:
            return as_committed(root) if only_committed else as_it_is(root)
        if only_committed:
            raise RequestError(f"--only-committed: {where.absolute()} is in no git repository")
        return as_needed(self.spec, self.sweep_file)

    def bundle(self, tree: Tree, arguments: argparse.Namespace) -> Bundle | None:
        """What is sent of a tree; None where the sweep needs no file of the user's.

        Raises RequestError where a file that it needs would not be there.
        """
        made = pack(
            tree,
            homes=[home_folder(None).absolute()],
            exclude=arguments.exclude,
            secrets=secret_values(os.environ),
            most=arguments.max_bundle,
        )
        root = made.root.resolve()
        needed = own_files(self.spec)
        needed += [] if self.sweep_file is None else [self.sweep_file]
        for file in needed:
            path = file.parent.resolve() / file.name
            if not path.is_relative_to(root):
                raise RequestError(f"{file} is needed, but lies outside of {root}, which is sent")
            name = path.relative_to(root).as_posix()
            if name not in made.names:
                why = [note for note in made.notes if name in note]
                raise RequestError(
                    f"{name} is needed, but is not among the files that are sent"
                    f" ({why[0] if why else 'git ignores it'})"
                )
        return made if made.names else None

    def entrypoint(self, root: Path | None, python: str) -> str:
        """The job's command. Raises RequestError where a secret of the environment is in it."""
        command = entrypoint_command(
            self.file, self.home, self.options, root=root, imports=self.imports, python=python
        )
        if any(value in command for value in secret_values(os.environ)):
            raise RequestError(
                "an option holds the value of a secret variable, and a job's command can be read "
                "by all who see the cluster"
            )
        return command


def id_for(sweep: str) -> str:
    """`carft-SWEEP-20261125-205900-1a2b`."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", sweep)
    return f"carft-{plain}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"


def metadata(spec: SweepSpec, commit: str | None) -> dict[str, str]:
    """What the cluster shows of a job."""
    told = {SWEEP: spec.name, USER: user()}
    return told | ({COMMIT: commit} if commit else {})


def environment(
    arguments: argparse.Namespace, tree_commit: str | None, secrets: list[str]
) -> Variables:
    """The job's variables, with the commit that is sent."""
    made = variables(os.environ, arguments.env, secrets)
    sent = {**made.sent} | ({SOURCE_COMMIT: tree_commit} if tree_commit else {})
    return Variables(sent, made.kept, made.notes)


def check_version(api: JobsApi, note: Note) -> str:
    """The cluster's Ray. Raises RequestError for one that the driver cannot run with."""
    there, here = api.ray_version(), version("ray")
    number = tuple(int(part) for part in re.findall(r"\d+", there)[:2])
    if number < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RequestError(f"the cluster has Ray {there}; carft-sweep needs {oldest} or newer")
    if there != here:
        note(f"The cluster has Ray {there}, this machine {here}: the job runs with the cluster's.")
    return there


def send(
    api: JobsApi,
    request: Request,
    arguments: argparse.Namespace,
    note: Note,
) -> str:
    """Upload what is missing and submit; the job's id. What is sent is named first."""
    check_version(api, note)
    pip = requirements(arguments.pip)
    tree = request.tree(only_committed=arguments.only_committed)
    bundle, commit = request.bundle(tree, arguments), commit_of(tree)
    given = environment(arguments, commit, arguments.secret)
    entrypoint = request.entrypoint(None if bundle is None else bundle.root, arguments.python)
    tell(bundle, given, note)
    if bundle is not None:
        api.upload(bundle.uri, bundle.data)
    return _taken(
        api,
        {
            "entrypoint": entrypoint,
            "submission_id": id_for(request.spec.name),
            "runtime_env": runtime_env(given, None if bundle is None else bundle.uri, pip),
            "metadata": metadata(request.spec, commit),
        },
    )


def commit_of(tree: Tree) -> str | None:
    """The commit that is sent, `-dirty` behind it where there are changes."""
    return tree.commit and f"{tree.commit}{'-dirty' if tree.states else ''}"


def tell(bundle: Bundle | None, given: Variables, note: Note) -> None:
    """Name what is sent and what is not, before it is."""
    if bundle is not None:
        for line in bundle.notes:
            note(line)
        size = f"{shown(bundle.size)}, packed {shown(len(bundle.data))}"
        note(f"{len(bundle.names)} files of {bundle.root} are sent, {size}.")
        if bundle.has_the_product:
            note("They hold carft-sweep itself: the job runs with these sources.")
    for line in given.notes:
        note(line)
    if given.kept:
        note(
            f"Not sent, since secret: {', '.join(given.kept)}. Where the job needs them, the "
            "head's environment must have them, or name a file there: --secret NAME=/path"
        )


def _taken(api: JobsApi, request: Mapping[str, Any]) -> str:
    try:
        return api.submit(request)
    except ServiceUnreachable as error:
        # The answer may be lost, and the job there.
        try:
            return api.job(str(request["submission_id"])).id
        except (RequestError, ServiceUnreachable):
            raise error from None


def _home(option: str | None) -> str:
    home = option or os.environ.get(HOME_VARIABLE)
    if not home or not home.startswith("/"):
        raise RequestError(
            f"{f'the home {home} must be' if home else 'where is the home? Give'} an absolute "
            f"path that every node of the cluster sees, with --home or {HOME_VARIABLE}"
        )
    return home


def _as_run(arguments: argparse.Namespace, options: list[str]) -> argparse.Namespace:
    """The options as `run` reads them; it exits with 2 for what it does not know."""
    if (root := arguments.data_root) is not None and not root.startswith("/"):
        raise RequestError(f"--data-root {root}: must be an absolute path on the cluster")
    read = parse(["run", arguments.file, *options])
    if read.in_process or read.address:
        raise RequestError("a job runs on its cluster: no --in-process and no --address for it")
    if read.home:
        raise RequestError("--home goes before `--`")
    return read
