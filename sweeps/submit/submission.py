"""A sweep as a job of a Ray cluster: its command, and the files and variables that are sent."""

from __future__ import annotations

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

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.engines.ray_tokens import check_version
from carft_sweep.sweeps.secrets import NAMES, SUFFIX
from carft_sweep.sweeps.spec.spec import SweepSpec
from carft_sweep.sweeps.submit.client import JobClient
from carft_sweep.tracking.location import HOME, HOME_VARIABLE, home_folder, without_password
from carft_sweep.tracking.program import NAME, SUBMITTED
from carft_sweep.tracking.provenance import SOURCE_COMMIT, USER_VARIABLE, provenance_tags, user

STOP_SECONDS = 600
"""Seconds that a stopped job has until Ray kills it; an epoch that does not end by then is lost."""
SECRET_FILES = (
    *(".env", ".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.ppk"),
    *("*.keystore", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.asc", "*.ovpn"),
    *(".netrc", "_netrc", ".pgpass", ".my.cnf", ".pypirc", ".npmrc", ".htpasswd", ".*_history"),
    *("pip.conf", ".git-credentials", ".dockercfg", ".dockerconfigjson", "kubeconfig*"),
    *("credentials", "credentials.*", "*[-_.]credentials.*", "service[-_]account*.json"),
    *("client_secret*.json", "*[-_.]key.json", "*api[-_]key*", "kaggle.json", ".databrickscfg"),
    *(".s3cfg", ".boto", "rclone.conf", "*.tfstate", "*.tfstate.*", "*.tfvars"),
    *("secret", "secret.*", "secrets", "secrets.*", "*.secret", "*.secrets"),
    *("token", "token.*", "auth_token", "*[-_.]token", "*[-_.]token.txt", "*[-_.]token.json"),
    *("password", "passwords", "password.*", "passwords.*", "*[-_.]password", "*[-_.]password.*"),
    *("cookies.txt", "*[-_.]cookies.txt", "optuna[-_]url"),
    *("!*.py", "!*.pub", "!*.example", "!*.sample", "!*.template", "!*.md"),
    *(".aws/", ".azure/", ".docker/", ".gnupg/", ".huggingface/", ".kube/", ".password-store/"),
    *(".ssh/", "**/gh/hosts.yml", "secret/", ".secret/", "secrets/", ".secrets/"),
)
"""Patterns as in a .gitignore of what is never sent."""
_SECRET_NAME = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|KEY|CREDENTIAL|WEBHOOK|HEADER|COOKIE|SIGNATURE"
    r"|_(?:PASS|PWD|DSN)$",
    re.IGNORECASE,
)
_NO_SECRET_ALONE = "MLFLOW_TRACKING_USERNAME"
_SHORTEST = 8
"""A shorter secret may stand anywhere by chance."""
_PREFIXES = ("MLFLOW_", "CARFT_")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,40}://.*", re.DOTALL)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Submission:
    """A sweep that was read and validated here, and the options that its job runs with."""

    spec: SweepSpec
    file: Path | str
    """The sweep file, or a recipe's name."""
    imports: tuple[str, ...]
    home: str
    """The home's path on the cluster, absolute."""
    options: tuple[str, ...]
    """Further options of the job's `run`, as words."""

    @property
    def root(self) -> Path | None:
        """The folder that is sent: the repository of the sweep file, else the current folder. None
        for a recipe without files of the user's own outside of a repository."""
        start = Path.cwd().resolve()
        folder = self.file.resolve().parent if isinstance(self.file, Path) else start
        for top in (folder, *folder.parents):
            if (top / ".git").exists():
                return top
        if not isinstance(self.file, Path) and not any(map(os.path.isabs, self.spec.imports)):
            return None
        return start if folder.is_relative_to(start) else folder

    def entrypoint(self) -> str:
        """Return the job's command: `cd FOLDER && exec python -m carft_sweep run FILE ...`. Paths
        are relative to the current folder on both sides. Raises RequestError for a file that is not
        sent, and for a secret among the options."""
        root, start = self.root, Path.cwd().resolve()
        if root is not None and not start.is_relative_to(root):
            start = root

        def sent_path(path: Path) -> str:
            path = path.parent.resolve() / path.name
            if root is None or not path.is_relative_to(root):
                raise RequestError(
                    f"{path} is needed, but lies outside of {root or 'nothing'}, which is sent"
                )
            return Path(os.path.relpath(path, start)).as_posix()

        file = sent_path(self.file) if isinstance(self.file, Path) else self.file
        words = ["python", "-m", "carft_sweep", "run", file]
        words += ["--address", "auto", "--home", self.home]
        for item in self.imports:
            words += ["--import", sent_path(Path(item)) if Path(item).is_absolute() else item]
        words += self.options
        secrets = secret_values(os.environ)
        if any(_has_password(word) or any(s in word for s in secrets) for word in words):
            raise RequestError(
                "an option has a password or the value of a secret variable, and everybody who "
                "sees the cluster can read a job's command: give it in the environment of the "
                "head, or in a file there: --env NAME_FILE=/path"
            )
        command = f"exec {shlex.join(words)}"
        if root is None or start == root:
            return command
        folder = shlex.quote(start.relative_to(root).as_posix())
        return f"mkdir -p {folder} && cd {folder} && {command}"


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable must not be sent, as its name or a password in an address shows."""
    return name in NAMES or bool(_SECRET_NAME.search(name)) or _has_password(value)


def _has_password(word: str) -> bool:
    address = _ADDRESS.search(word)
    return address is not None and without_password(address[0]) != address[0]


def secret_values(environ: Mapping[str, str]) -> list[str]:
    """Return the values of this environment that must not occur in a command or variable."""
    return [
        value
        for name, value in environ.items()
        if is_secret(name, value)
        and name != _NO_SECRET_ALONE
        and len(value) >= _SHORTEST
        and not value.startswith("/")  # a path
    ]


def job_variables(
    environ: Mapping[str, str], assignments: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Return the variables of a job, and the names of the secrets among them that are not sent. The
    variables are MLFLOW_* and CARFT_* of `environ`, and the assignments `NAME=VALUE`. Raises
    RequestError for a secret among the assignments that is not named by a file on the cluster."""
    values = secret_values(environ)

    def holds_secret(name: str, value: str) -> bool:
        return is_secret(name, value) or any(secret in value for secret in values)

    sent = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    withheld = []
    for name, value in sorted(environ.items()):
        if not value or name == HOME_VARIABLE or not (name in NAMES or name.startswith(_PREFIXES)):
            continue
        if not holds_secret(name, value):
            sent[name] = value
        elif name != "RAY_AUTH_TOKEN":  # this machine's own
            withheld.append(name)
    for item in assignments:
        name, equals, value = item.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            shown = name if _VARIABLE.fullmatch(name) else "..."  # the whole may be a secret
            raise RequestError(f"--env {shown}: must be NAME=VALUE")
        secret = name.removesuffix(SUFFIX)
        if secret != name and secret in NAMES and value.startswith("/"):
            withheld = [other for other in withheld if other != secret]
        elif holds_secret(name, value):
            raise RequestError(
                f"--env {name}: this is a secret, and everybody who sees the cluster can read the "
                f"variables of a job: put it into a file there and give --env {secret}_FILE=/path"
            )
        sent[name] = value
    return sent, withheld


def excluded(root: Path, patterns: Sequence[str]) -> list[str]:
    """Return patterns of files below `root` not to send: secrets, homes, links out, and
    `patterns`."""
    home = home_folder(None).resolve()
    homes = [f"/{home.relative_to(root).as_posix()}"] if home.is_relative_to(root) else []
    return [*SECRET_FILES, ".git", f"{HOME}/", *homes, *_links_out(root), *patterns]


def _links_out(root: Path) -> Iterator[str]:
    """Yield the links that lead out of a folder, whose targets Ray would send."""
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                yield f"/{path.relative_to(root).as_posix()}"
        folders[:] = [name for name in folders if not name.startswith(".")]


def send(
    client: JobClient,
    submission: Submission,
    *,
    exclude: Sequence[str] = (),
    assignments: Sequence[str] = (),
    note: Callable[[str], None],
) -> str:
    """Submit a sweep and return the job's id; `note` gets messages on what is sent and not."""
    entrypoint, root = submission.entrypoint(), submission.root
    sent, withheld = job_variables(os.environ, assignments)
    theirs, ours = client.ray_version(), version("ray")
    check_version(theirs, "the cluster")
    if theirs != ours:
        note(f"The cluster has Ray {theirs}, this machine {ours}: the job runs with the cluster's.")
    if client.is_open():
        note(
            f"{client.shown} takes jobs from whoever reaches it: the cluster asks for no token "
            "(start its nodes with RAY_AUTH_MODE=token)"
        )
    if withheld:
        note(
            f"Not sent, since secret: {', '.join(withheld)}. Where the job needs them, the head's "
            "environment must have them, or name a file there: --env NAME_FILE=/path"
        )
    sent.setdefault(USER_VARIABLE, user())
    typed = (NAME, "submit", str(submission.file), "--address", client.shown)
    sent[SUBMITTED] = shlex.join([*typed, "--home", submission.home])
    metadata = {"carft_sweep": submission.spec.name, "carft_user": sent[USER_VARIABLE]}
    runtime_env: dict[str, Any] = {"env_vars": sent}
    if root is not None:
        note(f"{root} is sent, without what git ignores and what looks like a secret by its name.")
        runtime_env |= {"working_dir": str(root), "excludes": excluded(root, exclude)}
        tags = provenance_tags(root)
        if commit := tags.get("mlflow.source.git.commit"):
            dirty = "-dirty" if tags.get("carft.git.dirty") == "true" else ""
            metadata["carft_commit"] = sent[SOURCE_COMMIT] = f"{commit}{dirty}"
    name = re.sub(r"[^A-Za-z0-9_-]", "-", submission.spec.name)
    return client.submit_job(
        entrypoint=entrypoint,
        submission_id=f"carft-{name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}",
        runtime_env=runtime_env,
        metadata=metadata,
    )
