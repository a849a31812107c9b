"""What a submitted sweep is sent with: files and variables, without secrets."""

from __future__ import annotations

import fnmatch
import io
import os
import re
import stat
import subprocess
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from carft_sweep.carft_core.errors import RequestError, unknown
from carft_sweep.carft_core.files import format_size
from carft_sweep.sweeps.secrets import NAMES, SUFFIX
from carft_sweep.tracking.location import HOME, HOME_VARIABLE, SECRET_OPTION
from carft_sweep.tracking.provenance import run_git

BY_VALUE = "CARFT_OPTUNA_STORAGE"
"""May hold a password or not: its value decides."""
_NAME = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|KEY|CREDENTIAL|WEBHOOK|HEADER|COOKIE|SIGNATURE"
    r"|_(?:PASS|PWD|DSN)$",
    re.IGNORECASE,
)
# Repetitions have limits, or a megabyte of letters would take hours.
_SCHEME = r"[a-z][a-z0-9+.-]{0,40}://"
_PASSWORD = re.compile(
    rf"{_SCHEME}[^/\s@:]*:[^/\s@]+@|https?://[^/\s@]+@"
    rf"|[?&#;]{SECRET_OPTION}",
    re.IGNORECASE,
)
_LOGIN = re.compile(rf"{_SCHEME}[^/\s@:]+:[^/\s@]+@", re.IGNORECASE)
# In a single word nothing else can follow the host, and passwords may have blanks and slashes.
_PASSWORD_IN_WORD = re.compile(rf"{_SCHEME}[^/\s@:?#]*:.+@", re.IGNORECASE | re.DOTALL)
_FOLDERS = frozenset(
    {".aws", ".azure", ".docker", ".gnupg", ".huggingface", ".kube", ".password-store", ".ssh"}
    | {"secret", ".secret", "secrets", ".secrets"}
)
_FILES = (
    *(".env", ".env.*", "*.env", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.ppk"),
    *(".env~", "creds", "creds.*", "*[-_.]creds.*", "access[-_]keys.csv", "accesskeys.csv"),
    *("*deploy[-_]key", "ssh_host_*_key", "session[-_]key", ".databrickscfg", ".*_history"),
    *("*.keystore", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.asc", "*.ovpn"),
    *(".netrc", "_netrc", ".pgpass", ".my.cnf", ".mylogin.cnf", ".pypirc", ".npmrc", ".htpasswd"),
    *("pip.conf", "pip.ini", ".git-credentials", ".dockercfg", ".dockerconfigjson", "kubeconfig*"),
    *("credentials", "credentials.*", "*[-_.]credentials.*", "service[-_]account*.json"),
    *("client_secret*.json", "*[-_.]key.json", "*api[-_]key*", "kaggle.json"),
    *(".s3cfg", ".boto", "rclone.conf", "*.tfstate", "*.tfstate.*", "*.tfvars", "*.tfvars.json"),
    *("secret", "secret.*", "secrets", "secrets.*", "*.secret", "*.secrets"),
    *("token", "token.*", "auth_token", "*[-_.]token", "*[-_.]token.txt", "*[-_.]token.json"),
    *("password", "passwords", "password.*", "passwords.*", "*[-_.]password", "*[-_.]password.*"),
    *("cookies.txt", "*[-_.]cookies.txt", "optuna[-_]url"),
)
_PATHS = ("*/gh/hosts.yml",)
_HARMLESS = ("*.py", "*.pub", "*.example", "*.sample", "*.template", "*.md")
_PRIVATE_KEYS = {
    "PRIVATE KEY": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY",  # PEM, OpenSSH, PGP; also within JSON
    "PuTTY-User-Key-File-": r"PuTTY-User-Key-File-\d",
}
_TOKENS = {
    "AKIA": r"\bAKIA[0-9A-Z]{16}\b",
    "ASIA": r"\bASIA[0-9A-Z]{16}\b",
    "AIza": r"\bAIza[\w-]{35}",
    "hf_": r"\bhf_[A-Za-z0-9]{30,}",
    **{f"gh{kind}_": rf"\bgh{kind}_[A-Za-z0-9]{{36,}}" for kind in "pousr"},
    "github_pat_": r"\bgithub_pat_\w{22,}",
    "glpat-": r"\bglpat-[\w-]{20,}",
    "npm_": r"\bnpm_[A-Za-z0-9]{36}",
    "pypi-": r"\bpypi-[\w-]{50,}",
    "sk-": r"\bsk-(?:(?:ant|proj|svcacct)-[\w-]{20,}|[A-Za-z0-9]{32,})",
    "xox": r"\bxox[abeprs]-[\w-]{10,}",
    "hooks.slack.com/": r"hooks\.slack\.com/(services|workflows|triggers)/\w+/\w+",
    "/api/webhooks/": r"/api/webhooks/\d+/[\w-]{20,}",
    ".webhook.office.com/": r"\.webhook\.office\.com/webhookb2/",
}
"""Of tokens, and of addresses that are secrets by themselves. As above: a literal part, which is
looked for in no time, and the whole pattern."""
_LARGEST_TEXT = 10**6
"""Bytes; no file of settings is larger."""
_SHORTEST = 8
"""A shorter value may stand anywhere by chance."""
_NO_SECRET_ALONE = "MLFLOW_TRACKING_USERNAME"
_PRODUCT = ("carft_sweep/__main__.py", "carft_sweep/sweeps/__init__.py")


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable must not be sent: a secret, or a secret's file of this machine."""
    plain = name.removesuffix(SUFFIX)
    return (
        (plain in NAMES and name != BY_VALUE) or bool(_NAME.search(plain)) or word_has_secret(value)
    )


def has_password(text: str) -> bool:
    """Return whether a URL with a password, a signature or a token stands in a text."""
    return bool(_PASSWORD.search(text))


def _holds(content: bytes, patterns: Mapping[str, str]) -> bool:
    return any(
        part.encode() in content and re.search(pattern.encode(), content)
        for part, pattern in patterns.items()
    )


def word_has_secret(word: str) -> bool:
    """Return whether one value or option holds a token, or a URL with a password to its end."""
    return (
        has_password(word)
        or bool(_PASSWORD_IN_WORD.search(word))
        or _holds(word.encode(errors="replace"), _TOKENS)
    )


def secret_values(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of this environment that must stand nowhere else."""
    values: dict[str, None] = {}
    for name, value in environ.items():
        if not is_secret(name, value) or name.endswith(SUFFIX) or value.startswith("/"):
            continue  # paths are none
        if name == _NO_SECRET_ALONE:
            continue
        values[value] = None
        if "://" in value:
            with suppress(ValueError):  # it is no URL
                values[unquote(urlsplit(value).password or "")] = None
    return tuple(value for value in values if len(value) >= _SHORTEST)


def name_exclusion(name: str) -> str | None:
    """Return why a file is not sent by its name (`a/b.pem`), or None when it may be."""
    path = PurePosixPath(name)
    if ".git" in path.parts:
        return "git's own"
    if any(part.lower() in _FOLDERS for part in path.parts[:-1]):
        return "in a folder for secrets"
    if _is_harmless(name):
        return None
    last, whole = path.name.lower(), f"/{name.lower()}"
    if any(fnmatch.fnmatchcase(last, pattern) for pattern in _FILES) or any(
        fnmatch.fnmatchcase(whole, pattern) for pattern in _PATHS
    ):
        return "its name is one for secrets"
    return None


def content_exclusion(name: str, content: bytes, values: Iterable[str]) -> str | None:
    """Return why a file is not sent by its content, or None when it may be."""
    if _holds(content, _PRIVATE_KEYS):
        return "holds a private key"
    if any(value.encode() in content for value in values):
        return "holds a secret of this environment"
    if _holds(content, _TOKENS):
        return "holds a token"
    if not _is_harmless(name) and _LOGIN.search(_text(content)):
        return "holds an address with a password"
    return None


def _is_harmless(name: str) -> bool:
    """Return whether a file is by its name a program, an example or a page."""
    last = PurePosixPath(name).name.lower()
    return any(fnmatch.fnmatchcase(last, pattern) for pattern in _HARMLESS)


def _text(content: bytes) -> str:
    """Return what a text says; of another file, or a large one, nothing."""
    if len(content) > _LARGEST_TEXT or b"\0" in content:
        return ""
    return content.decode(errors="replace")


@dataclass(frozen=True)
class Bundle:
    """The files that are sent, as a zip archive."""

    root: Path
    names: tuple[str, ...]
    """Of the files, relative to the root."""
    size: int
    """Bytes of the files."""
    data: bytes
    """The archive: the same files make the same bytes, which Ray keeps and needs only once."""
    notes: tuple[str, ...]
    """The files that are not sent, each with the reason."""
    doubtful: tuple[str, ...] = ()
    """Names of files that are sent though they hold what looks like a password in an address."""

    @property
    def has_product(self) -> bool:
        """Whether it brings carft-sweep itself: the job then runs with these very sources."""
        return set(_PRODUCT) <= set(self.names)


def repository_of(folder: Path) -> Path | None:
    """Return the top folder of the git repository around `folder`, or None outside of one."""
    folder = folder.resolve()
    return next((top for top in (folder, *folder.parents) if (top / ".git").exists()), None)


def pack(
    root: Path,
    *,
    home: Path | None = None,
    exclude: Sequence[str] = (),
    secrets: Sequence[str] = (),
    max_bytes: int = 100 * 10**6,
) -> Bundle:
    """Pack a folder without what looks like a secret, without homes, and without `exclude`.

    In a git repository without what git ignores. A link within the folder is sent as what it leads
    to, since an archive of Ray's has no links. `secrets` are values that no file may hold.
    Raises RequestError for more than `max_bytes`.
    """
    root = root.resolve()
    sizes: dict[str, int] = {}
    notes: list[str] = []
    total = 0
    for name in _list_files(root):
        reason = _exclusion(root, name, home, exclude)
        if reason is None:
            sizes[name] = (root / name).stat().st_size
            total += sizes[name]
            if total > max_bytes:  # at once: without git this may be a folder without an end
                raise _too_large(sizes, max_bytes)
        else:
            notes.append(f"not sent: {name} ({reason})")
    buffer = io.BytesIO()
    names: list[str] = []
    doubtful = []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(sizes):
            content = (root / name).read_bytes()
            if reason := content_exclusion(name, content, secrets):
                notes.append(f"not sent: {name} ({reason})")
                continue
            if has_password(_text(content)):
                doubtful.append(name)
            entry = zipfile.ZipInfo.from_file(root / name, name, strict_timestamps=False)
            entry.date_time = (1980, 1, 1, 0, 0, 0)  # no archive knows an earlier time
            executable = entry.external_attr >> 16 & stat.S_IXUSR
            entry.external_attr = (0o100755 if executable else 0o100644) << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
            names.append(name)
    size = sum(sizes[name] for name in names)
    return Bundle(
        root, tuple(names), size, buffer.getvalue(), tuple(notes), doubtful=tuple(doubtful)
    )


def source_commit(root: Path) -> str | None:
    """Return the commit that is checked out, with `-dirty` behind it where files differ."""
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()
    except RequestError:  # before the first commit
        return None
    changes = _git(root, "status", "--porcelain", "--ignore-submodules=dirty")
    return f"{commit}-dirty" if changes else commit


def _list_files(root: Path) -> Iterator[str]:
    """Yield the files, with those of each folder that a link leads to, under the link's name too.

    Links within such a folder are not followed.
    """
    names = tuple(_list_entries(root))
    for name in names:
        path, target = root / name, (root / name).resolve()
        if not (path.is_symlink() and target.is_dir() and target.is_relative_to(root)):
            yield name
            continue
        inside = f"{target.relative_to(root).as_posix()}/"
        for other in names:
            if other.startswith(inside) and not (root / other).is_dir():
                yield f"{name}/{other.removeprefix(inside)}"


def _list_entries(root: Path) -> Iterator[str]:
    """Yield what git tracks and what it does not ignore; without git all but hidden folders."""
    if (root / ".git").exists():
        # git lists untracked files only without submodules, and tracked ones in all of them.
        listed = _git(root, "ls-files", "-z", "--recurse-submodules")
        listed += _git(root, "ls-files", "-z", "--others", "--exclude-standard")
        yield from dict.fromkeys(filter(None, listed.split("\0")))
        return
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith((".", "__pycache__"))
        )
        links = [name for name in subfolders if (Path(folder) / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (Path(folder) / name).relative_to(root).as_posix()


def _exclusion(root: Path, name: str, home: Path | None, exclude: Iterable[str]) -> str | None:
    path = root / name
    target = path.resolve()
    if HOME in PurePosixPath(name).parts or (home is not None and path.is_relative_to(home)):
        return "in a home"
    for pattern in exclude:
        below = f"{pattern.rstrip('/')}/*"
        if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, below):
            return f"--exclude {pattern}"
    if not target.is_relative_to(root):
        return "a link out of the folder"
    if not target.is_file():
        return "no regular file"
    return name_exclusion(name) or name_exclusion(target.relative_to(root).as_posix())


def _too_large(sizes: Mapping[str, int], max_bytes: int) -> RequestError:
    largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    return RequestError(
        "\n".join(
            [
                f"more than {format_size(max_bytes)} would be sent (--max-bundle); the largest:",
                *(f"  {format_size(sizes[name])}  {name}" for name in largest),
                "Leave files out with --exclude PATTERN, or let git ignore them. Data and weights "
                "belong on storage that the nodes mount.",
            ]
        )
    )


def _git(folder: Path, *command: str) -> str:
    try:
        done = run_git(folder, *command, seconds=60)
    except FileNotFoundError:
        raise RequestError(f"{folder} lies in a git repository, but git is not installed") from None
    except subprocess.TimeoutExpired:
        raise RequestError(f"git {command[0]} took over 60 s in {folder}") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise RequestError(f"git {command[0]} failed in {folder}: {reason}")
    return os.fsdecode(done.stdout)


STOP_SECONDS = 600
"""What a stopped job has until Ray kills it: an epoch ends within it, or is lost."""
_PREFIXES = ("MLFLOW_", "CARFT_")
_NOT_FOR_JOBS = frozenset({"RAY_AUTH_TOKEN", f"RAY_AUTH_TOKEN{SUFFIX}"})  # this machine's own
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCAL_PATH = re.compile(r"(-e|--editable|\.{0,2}/|~|file:|[a-z]:\\)", re.IGNORECASE)


@dataclass(frozen=True)
class Variables:
    """The environment variables of a job."""

    sent: Mapping[str, str]
    withheld: tuple[str, ...]
    """Names of secrets that are set here and not sent."""
    notes: tuple[str, ...]


def job_variables(
    environ: Mapping[str, str], assignments: Sequence[str] = (), secrets: Sequence[str] = ()
) -> Variables:
    """Collect MLFLOW_* and CARFT_* of `environ` without secrets, then `NAME=VALUE` assignments.

    `secrets` are `NAME=/path/on/the/cluster`, and become NAME_FILE. Raises RequestError for a
    secret among the assignments, and for what has another form.
    """
    values = secret_values(environ)

    def holds_secret(name: str, value: str) -> bool:
        return is_secret(name, value) or any(secret in value for secret in values)

    sent = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    withheld = []
    for name, value in sorted(environ.items()):
        if not value or name in _NOT_FOR_JOBS or name == HOME_VARIABLE:
            continue
        secret = name.removesuffix(SUFFIX)
        if holds_secret(name, value) and (name.startswith(_PREFIXES) or secret in NAMES):
            withheld.append(secret)
        elif name.startswith(_PREFIXES):
            sent[name] = value
    for item in assignments:
        name, value = _assignment("--env", item, "VALUE")
        if holds_secret(name, value):
            raise RequestError(
                f"--env {name}: this is a secret, and everybody who sees the cluster can read the "
                f"variables of a job: put it into a file there and give --secret {name}=/path"
            )
        sent[name] = value
    for item in secrets:
        name, path = _assignment("--secret", item, "/path/on/the/cluster")
        if name not in NAMES:
            raise RequestError(f"--secret: {unknown('secret', name, NAMES)}")
        if not path.startswith("/"):
            raise RequestError(f"--secret {name}: {path!r} must be an absolute path on the cluster")
        sent[f"{name}{SUFFIX}"] = path
        withheld = [other for other in withheld if other != name]
    return Variables(sent, tuple(dict.fromkeys(withheld)), tuple(_doubts(sent)))


def pip_requirements(items: Iterable[str]) -> list[str]:
    """Return what pip installs for a job: packages, and the lines of files.

    Raises RequestError for a missing file, paths of this machine, passwords, and another Ray.
    """
    lines: list[str] = []
    for item in items:
        is_file = item.endswith(".txt") or Path(item).is_file()
        lines += _requirement_lines(Path(item)) if is_file else [item]
    for line in lines:
        if has_password(line):
            raise RequestError(
                "--pip: a line has an address with a password, which everybody who sees the "
                "cluster could read: let pip's own configuration on the nodes have it"
            )
        if _LOCAL_PATH.match(line):
            raise RequestError(
                f"--pip {line}: a path of this machine means nothing on the cluster; put what is "
                "yours into the repository, which is sent"
            )
        if re.match(r"ray\b(?![-_.])", line, re.IGNORECASE):
            raise RequestError(f"--pip {line}: a job has the Ray of its cluster and no other")
    return lines


def _requirement_lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--pip {file}: cannot be read: {error}") from None
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def _assignment(option: str, item: str, form: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not _VARIABLE.fullmatch(name):
        # Without a name the whole may be a secret.
        shown = name if _VARIABLE.fullmatch(name) else "..."
        raise RequestError(f"{option} {shown}: must be NAME={form}")
    if name == "PYTHONPATH":
        raise RequestError(f"{option} PYTHONPATH: the driver sets it for its runs; use --pip")
    return name, value


def _doubts(sent: Mapping[str, str]) -> Iterator[str]:
    try:
        host = urlsplit(sent.get("MLFLOW_TRACKING_URI", "")).hostname
    except ValueError:
        host = None
    if host in LOCAL_HOSTS:
        yield f"MLFLOW_TRACKING_URI names {host}: for the job that is the head, not this machine"
    data = sent.get("CARFT_DATA")
    if data and not data.startswith("/"):
        yield f"CARFT_DATA is {data}, relative to what is sent; on the cluster give a whole path"
