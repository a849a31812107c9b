"""A sweep as a job of a Ray cluster: what is sent, and the command that runs it there."""

from __future__ import annotations

import logging
import os
import re
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import format_size
from carft_sweep.sweeps.engines.ray_tokens import check_version
from carft_sweep.sweeps.spec.spec import FOLDER, SweepSpec, load_spec, locate
from carft_sweep.sweeps.submit.client import JobClient
from carft_sweep.sweeps.submit.package import (
    Bundle,
    Variables,
    pack,
    repository_of,
    secret_values,
    source_commit,
    word_has_secret,
)
from carft_sweep.tracking.errors import ServiceUnreachable
from carft_sweep.tracking.location import home_folder
from carft_sweep.tracking.provenance import SOURCE_COMMIT, user

logger = logging.getLogger(__name__)

_SHOWN = 5
"""Names of doubtful files in one line, at most."""


@dataclass(frozen=True)
class Submission:
    """A sweep that was read and validated here, and the options that its job runs with."""

    spec: SweepSpec
    file: Path | str
    """The sweep file, or a recipe's name."""
    imports: tuple[str, ...]
    home: str
    """On the cluster, absolute."""
    options: tuple[str, ...]
    """Words of `run`."""

    @classmethod
    def load(
        cls,
        file: str,
        *,
        home: str,
        overrides: Sequence[str] = (),
        imports: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> Submission:
        """Read the sweep. Raises RequestError where it is wrong or cannot run on a cluster."""
        if not home.startswith("/"):
            raise RequestError(
                f"the home {home} must be an absolute path that every node of the cluster sees"
            )
        spec = load_spec(file, overrides, imports)
        if spec.engine == "local":
            raise RequestError("engine: local would leave the cluster idle; say auto or ray")
        path = locate(file)
        is_recipe = path.parent == FOLDER and not Path(file).is_file()
        return cls(spec, path.stem if is_recipe else path, tuple(imports), home, tuple(options))

    def pack(self, *, exclude: Sequence[str], max_bytes: int) -> Bundle | None:
        """Pack the repository of the sweep file, else the folder that it is run from.

        Returns None for a recipe without files of the user's own outside of a repository. Raises
        RequestError where a file that the sweep needs would not be sent.
        """
        needed = [Path(item) for item in self.spec.imports if Path(item).is_absolute()]
        folder = Path.cwd()
        if isinstance(self.file, Path):
            needed.append(self.file)
            folder = self.file.absolute().parent
        root = repository_of(folder)
        if root is None and not needed:
            return None
        if root is None:
            root = Path.cwd() if folder.is_relative_to(Path.cwd()) else folder
        logger.info("sending the files of %s", root)
        bundle = pack(
            root,
            home=home_folder(None).resolve(),
            exclude=exclude,
            secrets=secret_values(os.environ),
            max_bytes=max_bytes,
        )
        for file in needed:
            path = file.parent.resolve() / file.name
            if not path.is_relative_to(bundle.root):
                raise RequestError(
                    f"{file} is needed, but lies outside of {bundle.root}, which is sent"
                )
            name = path.relative_to(bundle.root).as_posix()
            if name not in bundle.names:
                reasons = [note for note in bundle.notes if name in note]
                raise RequestError(
                    f"{name} is needed, but is not among the files that are sent"
                    f" ({reasons[0] if reasons else 'git ignores it'})"
                )
        return bundle if bundle.names else None

    def entrypoint(self, root: Path | None, python: str = "python") -> str:
        """Return the job's command: `cd FOLDER && exec python -m carft_sweep run FILE ...`.

        `root` is the folder that is sent, None where nothing is. Paths are relative to the
        current folder, there as here. Raises RequestError for a secret among the options.
        """
        here = Path.cwd().resolve()
        start = here if root is not None and here.is_relative_to(root) else root

        def there(path: Path) -> str:
            path = path.parent.resolve() / path.name
            if root is None or start is None or not path.is_relative_to(root):
                raise RequestError(f"{path} lies outside of what is sent ({root or 'nothing'})")
            return Path(os.path.relpath(path, start)).as_posix()

        file = there(self.file) if isinstance(self.file, Path) else self.file
        words = [python, "-m", "carft_sweep", "run", file, "--address", "auto", "--home", self.home]
        for item in self.imports:
            words += ["--import", there(Path(item)) if Path(item).is_absolute() else item]
        words += self.options
        secrets = secret_values(os.environ)
        if any(word_has_secret(word) or any(s in word for s in secrets) for word in words):
            raise RequestError(
                "an option has a password or the value of a secret variable, and everybody who "
                "sees the cluster can read a job's command: give it as a secret (--secret, or in "
                "the environment of the head)"
            )
        command = f"exec {shlex.join(words)}"
        if root is None or start is None or start == root:
            return command
        folder = shlex.quote(start.relative_to(root).as_posix())
        return f"mkdir -p {folder} && cd {folder} && {command}"


def send(
    client: JobClient,
    submission: Submission,
    bundle: Bundle | None,
    variables: Variables,
    *,
    pip: Sequence[str] = (),
    python: str = "python",
    note: Callable[[str], None],
) -> str:
    """Submit a sweep and return the job's id; what is sent and what is not is named first."""
    entrypoint = submission.entrypoint(None if bundle is None else bundle.root, python)
    _check_version(client, note)
    if client.is_open():
        note(
            f"{client.shown} takes jobs from whoever reaches it: the cluster asks for no token "
            "(start its nodes with RAY_AUTH_MODE=token)"
        )
    commit = None if bundle is None else source_commit(bundle.root)
    for line in describe(bundle, variables):
        note(line)
    name = re.sub(r"[^A-Za-z0-9_-]", "-", submission.spec.name)
    id_ = f"carft-{name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    metadata = {"carft_sweep": submission.spec.name, "carft_user": user()}
    environment = dict(variables.sent)
    if commit is not None:
        metadata["carft_commit"] = environment[SOURCE_COMMIT] = commit
    runtime_env: dict[str, Any] = {"env_vars": environment}
    if pip:
        runtime_env["pip"] = list(pip)
    with tempfile.TemporaryDirectory() as folder:
        if bundle is not None:
            archive = Path(folder) / "files.zip"
            archive.write_bytes(bundle.data)
            runtime_env["working_dir"] = str(archive)
        return _submit(
            client,
            {
                "entrypoint": entrypoint,
                "submission_id": id_,
                "runtime_env": runtime_env,
                "metadata": metadata,
            },
        )


def describe(bundle: Bundle | None, variables: Variables) -> list[str]:
    """Return a line each for what is sent, and for what is withheld."""
    lines = []
    if bundle is not None:
        sizes = f"{format_size(bundle.size)}, packed {format_size(len(bundle.data))}"
        lines += [*bundle.notes, f"{len(bundle.names)} files of {bundle.root} are sent, {sizes}."]
        if bundle.doubtful:
            more = len(bundle.doubtful) - _SHOWN
            names = ", ".join(bundle.doubtful[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
            lines.append(
                "These are sent, and hold an address with what looks like a password or a token: "
                f"{names}. Look at them, or leave them out with --exclude."
            )
        if bundle.has_product:
            lines.append("They hold carft-sweep itself: the job runs with these sources.")
    lines += variables.notes
    if variables.withheld:
        lines.append(
            f"Not sent, since secret: {', '.join(variables.withheld)}. Where the job needs them, "
            "the head's environment must have them, or name a file there: --secret NAME=/path"
        )
    return lines


def _submit(client: JobClient, request: Mapping[str, Any]) -> str:
    try:
        return str(client.submit_job(**request))
    except ServiceUnreachable as error:
        logger.info("the answer to the submission is lost; looking for the job")
        try:
            return str(client.get_job_info(request["submission_id"]).submission_id)
        except (RequestError, ServiceUnreachable):
            raise error from None


def _check_version(client: JobClient, note: Callable[[str], None]) -> None:
    there, here = client.ray_version(), version("ray")
    check_version(there, "the cluster")
    if there != here:
        note(f"The cluster has Ray {there}, this machine {here}: the job runs with the cluster's.")
