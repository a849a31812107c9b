"""What a submitted sweep is sent with: files and variables, without secrets."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import io
import os
import re
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from carft_core.errors import RequestError, unknown
from sweeps.secrets import NAMES, SUFFIX
from sweeps.space.distributions import Categorical
from sweeps.spec.spec import SweepSpec
from sweeps.spec.user_code import FAMILY_SUFFIXES
from tracking.location import HOME, HOME_VARIABLE

BY_VALUE = "CARFT_OPTUNA_STORAGE"
"""May hold a password and may not: its value tells."""
_NAME = re.compile(r"PASSWORD|PASSWD|TOKEN|SECRET|KEY|CREDENTIAL|WEBHOOK", re.IGNORECASE)
_PASSWORD = re.compile(
    r"[a-z][a-z0-9+.-]*://[^/\s@:]*:[^/\s@]+@|https?://[^/\s@]+@"
    r"|[?&](\w*password|token|\w*secret|\w*key)=[^&\s]",
    re.IGNORECASE,
)
# In a single word nothing else can follow the host, and passwords may have blanks and slashes.
_PASSWORD_IN_WORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s@:?#]*:.+@", re.IGNORECASE | re.DOTALL)
_FOLDERS = frozenset({".aws", ".azure", ".docker", ".gnupg", ".kube", ".ssh", "secrets"})
_FILES = (
    *(".env", ".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks"),
    *("*.keystore", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc"),
    *(".pgpass", ".pypirc", ".npmrc", ".git-credentials", ".htpasswd", "kubeconfig*", "auth_token"),
    *("credentials", "credentials.*", "*[-_.]credentials.*", "service[-_]account*.json"),
    *("secret", "secret.*", "secrets", "secrets.*", "*.secret", "*.secrets"),
)
_HARMLESS = ("*.py", "*.pub", "*.example", "*.sample", "*.template", "*.md")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\r?\n[A-Za-z0-9+/=\r\n]{40}")
_SHORTEST = 8
"""A shorter value may stand anywhere by chance."""
_NO_SECRET_ALONE = "MLFLOW_TRACKING_USERNAME"


def is_secret(name: str, value: str) -> bool:
    """Whether a variable must not be sent. A `NAME_FILE` names a file of this machine, and is one
    too.
    """
    plain = name.removesuffix(SUFFIX)
    known = plain in NAMES and name != BY_VALUE
    return known or bool(_NAME.search(plain)) or word_has_password(value)


def has_password(text: str) -> bool:
    """Whether a URL with a password or a token stands in a text."""
    return bool(_PASSWORD.search(text))


def word_has_password(word: str) -> bool:
    """The same of one value or option, where nothing but the URL stands behind its beginning."""
    return has_password(word) or bool(_PASSWORD_IN_WORD.search(word))


def secret_values(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The values of this environment that must stand nowhere else, each longer than by chance."""
    found: dict[str, None] = {}
    for name, value in environ.items():
        if not is_secret(name, value) or name.endswith(SUFFIX) or value.startswith("/"):
            continue  # paths are none
        if name == _NO_SECRET_ALONE:
            continue
        found[value] = None
        if "://" in value:
            found[_password(value)] = None
    return tuple(value for value in found if len(value) >= _SHORTEST)


def why_a_file_stays(name: str) -> str | None:
    """Why a file is not sent, by its name (`a/b.pem`); None when it may be."""
    path = PurePosixPath(name)
    if ".git" in path.parts:
        return "git's own"
    last = path.name.lower()
    if any(fnmatch.fnmatchcase(last, pattern) for pattern in _HARMLESS):
        return None
    if _FOLDERS.intersection(path.parts[:-1]):
        return "in a folder for secrets"
    if any(fnmatch.fnmatchcase(last, pattern) for pattern in _FILES):
        return "its name is one for secrets"
    return None


def why_content_stays(content: bytes, values: Iterable[str]) -> str | None:
    """Why a file is not sent, by what it holds; None when it may be."""
    if _PRIVATE_KEY.search(content):
        return "holds a private key"
    if any(value.encode() in content for value in values):
        return "holds a secret of this environment"
    return None


def _password(url: str) -> str:
    try:
        return unquote(urlsplit(url).password or "")
    except ValueError:
        return ""


_GIT_SECONDS = 60.0
_LFS = b"version https://git-lfs.github.com/spec/"
_LFS_LONGEST = 1024


@dataclass(frozen=True)
class File:
    """One file that may be sent."""

    name: str
    """Relative to the root, with `/`."""
    size: int
    is_executable: bool
    read: Callable[[], bytes] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Tree:
    """Files below one folder, and what is to be said of them."""

    root: Path
    files: tuple[File, ...]
    notes: tuple[str, ...] = ()
    """What is not among the files, and why."""
    states: Mapping[str, str] = field(default_factory=dict)
    """`new` or `changed` since the commit, by the file's name."""
    commit: str | None = None


def repository_of(folder: Path) -> Path | None:
    """The top folder of the git repository around `folder`; None outside of one.

    Raises RequestError where there is one that git cannot read.
    """
    folder = folder.resolve()
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return None
    return Path(_git(folder, "rev-parse", "--show-toplevel").decode().rstrip("\n"))


def as_it_is(root: Path) -> Tree:
    """Every file that git knows, with its changes, and those that it neither knows nor ignores."""
    commit = _commit(root)
    known = _names(root, "ls-files", "-z", "--recurse-submodules")
    new = _names(root, "ls-files", "-z", "--others", "--exclude-standard")
    changed = set(_names(root, "diff", "--name-only", "-z", "HEAD")) if commit else set(known)
    states = dict.fromkeys(changed, "changed") | dict.fromkeys(new, "new")
    files: list[File] = []
    notes: list[str] = []
    for name in [*known, *new]:
        found = _on_disk(root, name)
        if isinstance(found, File):
            files.append(found)
            notes += _lfs(found)
        elif found is not None:
            notes.append(found)
        elif name in changed:
            notes.append(f"deleted: {name}")
    return Tree(root, tuple(files), tuple(notes), states, commit)


def as_committed(root: Path) -> Tree:
    """Every file of the commit that is checked out. Raises RequestError before the first one."""
    commit = _commit(root)
    if commit is None:
        raise RequestError(f"--only-committed: nothing is committed in {root} yet")
    files: list[File] = []
    notes: list[str] = []
    for line in _names(root, "ls-tree", "-r", "-z", "--long", "HEAD"):
        told, _, name = line.partition("\t")
        mode, kind, blob, size = told.split()
        if kind != "blob" or mode == "120000":
            what = "a link" if kind == "blob" else "a submodule"
            notes.append(f"not sent: {name} ({what}; send it without --only-committed)")
            continue
        read = functools.partial(_git, root, "cat-file", "blob", blob)
        files.append(File(name, int(size), mode == "100755", read))
        notes += _lfs(files[-1])
    left = [
        *_names(root, "diff", "--name-only", "-z", "HEAD"),
        *_names(root, "ls-files", "-z", "--others", "--exclude-standard"),
    ]
    notes += [f"left out, not committed: {name}" for name in left]
    return Tree(root, tuple(files), tuple(notes), commit=commit)


def file_at(root: Path, name: str) -> File:
    """One regular file below `root`."""
    path = root / name
    facts = path.stat()
    return File(name, facts.st_size, bool(facts.st_mode & stat.S_IXUSR), path.read_bytes)


def _on_disk(root: Path, name: str) -> File | str | None:
    """The file, why it is not sent, or None when it is not there. Links become what they name."""
    path = root / name
    if not os.path.lexists(path):
        return None
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        return f"not sent: {name} (a link out of the repository)"
    if path.is_dir():
        what = "a link to a folder" if path.is_symlink() else "a repository of its own"
        return f"not sent: {name.rstrip('/')} ({what})"
    if not path.is_file():
        return f"not sent: {name} (no regular file)"
    return file_at(root, name)


def _lfs(file: File) -> Iterator[str]:
    if file.size <= _LFS_LONGEST and file.read().startswith(_LFS):
        yield f"a pointer of Git LFS and not its content: {file.name} (git lfs pull)"


def _commit(root: Path) -> str | None:
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
    except RequestError:  # before the first commit
        return None


def _names(root: Path, *command: str) -> list[str]:
    return list(dict.fromkeys(filter(None, os.fsdecode(_git(root, *command)).split("\0"))))


def _git(folder: Path, *command: str) -> bytes:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *command],
            cwd=folder,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise RequestError(f"{folder} lies in a git repository, but git is not installed") from None
    except subprocess.TimeoutExpired:
        raise RequestError(f"git {command[0]} took over {_GIT_SECONDS:g} s in {folder}") from None
    if done.returncode:
        first = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise RequestError(f"git {command[0]} failed in {folder}: {first}")
    return done.stdout


_FIELDS = ("classes", "contexts")
_PARAMETERS = tuple(f"prompts.{field}" for field in _FIELDS)


def as_needed(spec: SweepSpec, sweep_file: Path | None) -> Tree:
    """The sweep file (None for a shipped recipe), family files, modules and template files.

    A module brings the Python files beside it, a package all of its own: they may be drawn on.
    The root is the deepest folder that holds them all and the current one.
    """
    paths = [] if sweep_file is None else [sweep_file]
    for item in own_files(spec):
        paths += [item] if item.name.endswith(FAMILY_SUFFIXES) else _of_module(item)
    paths += _templates(spec)
    paths = [path.parent.resolve() / path.name for path in paths]
    root = Path(os.path.commonpath([Path.cwd().resolve(), *(path.parent for path in paths)]))
    names = dict.fromkeys(path.relative_to(root).as_posix() for path in paths)
    files: list[File] = [file_at(root, name) for name in names]
    return Tree(root, tuple(files), states=dict.fromkeys(names, "sent"))


def own_files(spec: SweepSpec) -> list[Path]:
    """The modules and family files of the user's own that a sweep imports, absolute."""
    return [Path(item) for item in spec.imports if Path(item).is_absolute()]


def _of_module(file: Path) -> Iterator[Path]:
    if file.name == "__init__.py":
        yield from sorted(file.parent.rglob("*.py"))
    else:
        yield from sorted(file.parent.glob("*.py"))


def _templates(spec: SweepSpec) -> Iterator[Path]:
    """Files of templates, which are named relative to the current folder."""
    prompts = spec.trial.get("prompts", {})
    named: list[Any] = [prompts.get(field) for field in _FIELDS]
    for parameter in spec.parameters:
        if isinstance(parameter, Categorical) and parameter.name in _PARAMETERS:
            named += parameter.values
    for value in named:
        if isinstance(value, str) and Path(value).is_file():
            yield Path(value)


MOST = 100 * 10**6
"""Bytes. What the dashboard of Ray 2.60 takes in one request is 100 MiB."""
_LARGEST = 5
_EPOCH = (1980, 1, 1, 0, 0, 0)  # no archive knows an earlier time
_EXECUTABLE, _PLAIN = 0o100755, 0o100644
_PRODUCT = ("carft_core/__init__.py", "sweeps/__main__.py", "tracking/__init__.py")
_IN_THE_WAY = "sweeps/__init__.py"


@dataclass(frozen=True)
class Bundle:
    """What is sent."""

    root: Path
    """Where its files lie here."""
    names: tuple[str, ...]
    """Of its files, relative to the root."""
    size: int
    """Bytes of the files."""
    data: bytes
    """The zip archive."""
    notes: tuple[str, ...]

    @property
    def uri(self) -> str:
        """As Ray names packages: by their content, so that each is uploaded once."""
        return f"gcs://_ray_pkg_{hashlib.sha256(self.data).hexdigest()[:32]}.zip"

    @property
    def has_the_product(self) -> bool:
        """Whether it brings carft-sweep itself: the job then runs with these very sources."""
        return set(_PRODUCT) <= set(self.names)


def pack(
    tree: Tree,
    *,
    homes: Iterable[Path] = (),
    exclude: Sequence[str] = (),
    secrets: Sequence[str] = (),
    most: int = MOST,
) -> Bundle:
    """Pack a tree without what looks like a secret, without homes, and without `exclude`.

    `secrets` are values that no file may hold. Each file that stays is noted with the reason.
    Raises RequestError for more than `most` bytes, and where the files hide carft-sweep.
    """
    chosen: dict[str, File] = {}
    left = []
    for file in tree.files:
        why = _why_left_out(tree.root, file.name, homes, exclude)
        if why is None:
            chosen[file.name] = file
        else:
            left.append(f"not sent: {file.name} ({why})")
    _check_size(list(chosen.values()), most)
    contents: dict[str, bytes] = {}
    for name, file in sorted(chosen.items()):
        content = file.read()
        why = why_content_stays(content, secrets)
        if why is None:
            contents[name] = content
        else:
            left.append(f"not sent: {name} ({why})")
    if _IN_THE_WAY in contents and not set(_PRODUCT) <= contents.keys():
        raise RequestError(
            f"{tree.root / _IN_THE_WAY} makes sweeps/ a Python package, which hides carft-sweep's "
            "own of that name: remove the file or rename the folder"
        )
    archive = _zip(contents, {name for name, file in chosen.items() if file.is_executable})
    size = sum(map(len, contents.values()))
    states = [f"{tree.states[name]}: {name}" for name in contents if name in tree.states]
    return Bundle(tree.root, tuple(contents), size, archive, (*states, *tree.notes, *left))


def shown(size: int) -> str:
    """`12.3 MB`, `4.5 kB`."""
    return f"{size / 1e6:.1f} MB" if size >= 10**6 else f"{size / 1e3:.1f} kB"


def _why_left_out(
    root: Path, name: str, homes: Iterable[Path], exclude: Iterable[str]
) -> str | None:
    if HOME in PurePosixPath(name).parts or any((root / name).is_relative_to(h) for h in homes):
        return "in a home"
    for pattern in exclude:
        below = f"{pattern.rstrip('/')}/*"
        if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, below):
            return f"--exclude {pattern}"
    return why_a_file_stays(name)


def _check_size(files: Sequence[File], most: int) -> None:
    size = sum(file.size for file in files)
    if size <= most:
        return
    raise RequestError(
        "\n".join(
            [
                f"{shown(size)} are too much to send (--max-bundle is {shown(most)}); the largest:",
                *_largest(files),
                "Leave files out with --exclude PATTERN, or let git ignore them. Data and weights "
                "belong on storage that the nodes mount.",
            ]
        )
    )


def _largest(files: Iterable[File]) -> Iterator[str]:
    for file in sorted(files, key=lambda file: -file.size)[:_LARGEST]:
        yield f"  {shown(file.size)}  {file.name}"


def _zip(contents: dict[str, bytes], executable: set[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = (_EXECUTABLE if name in executable else _PLAIN) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()


STOP_SECONDS = 600
"""What a job that is asked to stop has until it is killed: an epoch ends within it, or is lost."""
_PREFIXES = ("MLFLOW_", "CARFT_")
_OURS = frozenset({"RAY_AUTH_TOKEN", f"RAY_AUTH_TOKEN{SUFFIX}"})  # for asking the head, here
_HERE = ("localhost", "127.0.0.1", "::1")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCAL = re.compile(r"(-e|--editable|\.{0,2}/|~|file:|[a-z]:\\)", re.IGNORECASE)


@dataclass(frozen=True)
class Variables:
    """The variables of a job."""

    sent: Mapping[str, str]
    kept: tuple[str, ...]
    """Names of secrets that are set here and not sent."""
    notes: tuple[str, ...]


def variables(
    environ: Mapping[str, str], given: Sequence[str] = (), secrets: Sequence[str] = ()
) -> Variables:
    """MLFLOW_* and CARFT_* of `environ` without secrets, then `NAME=VALUE` of `given`.

    `secrets` are `NAME=/path/on/the/cluster`, and become NAME_FILE. Raises RequestError for a
    secret's value among what is given, and for what has another form.
    """
    values = secret_values(environ)

    def is_one(name: str, value: str) -> bool:
        return is_secret(name, value) or any(one in value for one in values)

    sent = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    kept = []
    for name, value in sorted(environ.items()):
        if not value or name in _OURS or name == HOME_VARIABLE:
            continue
        if is_one(name, value) and (name.startswith(_PREFIXES) or _plain(name) in NAMES):
            kept.append(_plain(name))
        elif name.startswith(_PREFIXES):
            sent[name] = value
    for item in given:
        name, value = _pair("--env", item, "VALUE")
        if is_one(name, value):
            raise RequestError(
                f"--env {name}: this is a secret, and what a job is given can be read by all who "
                f"see the cluster: put it into a file there and give --secret {name}=/path"
            )
        sent[name] = value
    for item in secrets:
        name, path = _pair("--secret", item, "/path/on/the/cluster")
        if name not in NAMES:
            raise RequestError(f"--secret: {unknown('secret', name, NAMES)}")
        if not path.startswith("/"):
            raise RequestError(f"--secret {name}: {path!r} must be an absolute path on the cluster")
        sent[f"{name}{SUFFIX}"] = path
        kept = [other for other in kept if other != name]
    return Variables(sent, tuple(dict.fromkeys(kept)), tuple(_doubts(sent)))


def requirements(given: Iterable[str]) -> list[str]:
    """What pip installs for a job: packages, and the lines of files. Raises RequestError for a
    missing file, for paths of this machine, for passwords, and for another Ray.
    """
    found: list[str] = []
    for item in given:
        is_file = item.endswith(".txt") or Path(item).is_file()
        found += _lines(Path(item)) if is_file else [item]
    for line in found:
        if has_password(line):
            raise RequestError(
                "--pip: a line has an address with a password, which everybody who sees the "
                "cluster could read: let pip's own configuration on the nodes have it"
            )
        if _LOCAL.match(line):
            raise RequestError(
                f"--pip {line}: a path of this machine means nothing on the cluster; put what is "
                "yours into the repository, which is sent"
            )
        if re.match(r"ray\b(?![-_.])", line, re.IGNORECASE):
            raise RequestError(f"--pip {line}: a job has the Ray of its cluster and no other")
    return found


def runtime_env(
    variables: Variables, working_dir: str | None, pip: Sequence[str]
) -> dict[str, Any]:
    """As Ray's job API and KubeRay's `runtimeEnvYAML` take it."""
    made: dict[str, Any] = {"env_vars": dict(variables.sent)}
    if working_dir is not None:
        made["working_dir"] = working_dir
    if pip:
        made["pip"] = list(pip)
    return made


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--pip {file}: cannot be read: {error}") from None
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def _pair(option: str, item: str, what: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not _VARIABLE.fullmatch(name):
        # Without a name the whole may be a secret.
        shown = name if _VARIABLE.fullmatch(name) else "..."
        raise RequestError(f"{option} {shown}: must be NAME={what}")
    if name == "PYTHONPATH":
        raise RequestError(f"{option} PYTHONPATH: the driver sets it for its runs; use --pip")
    return name, value


def _plain(name: str) -> str:
    return name.removesuffix(SUFFIX)


def _doubts(sent: Mapping[str, str]) -> Iterator[str]:
    uri = sent.get("MLFLOW_TRACKING_URI", "")
    try:
        host = urlsplit(uri).hostname
    except ValueError:
        host = None
    if host in _HERE:
        yield f"MLFLOW_TRACKING_URI names {host}: for the job that is the head, not this machine"
    data = sent.get("CARFT_DATA")
    if data and not data.startswith("/"):
        yield f"CARFT_DATA is {data}, relative to what is sent; on the cluster give a whole path"
