"""What is a secret by its name, its form or its content: variables, addresses, files."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from sweeps.secret_files import NAMES, SUFFIX

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
