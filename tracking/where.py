"""Where the runs of a home are kept: its own database, or the server that the environment names."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from tracking.base import TrackingError
from tracking.file_systems import network_file_system
from tracking.locks import waiting

if TYPE_CHECKING:
    from tracking.spool import Spool

EXPERIMENT = "carft-sweep"
HOME, HOME_VARIABLE = ".carft", "CARFT_HOME"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_SECRET_OPTION = re.compile(r"(?<=[?&])(?:user|password|passwd|sslpassword|passfile)=[^&#]*&?")


@dataclass(frozen=True)
class Where:
    """Everything that decides where runs go."""

    named: str
    """Tracking URI: `sqlite:///...`, another database, or `http(s)://...`."""
    experiment: str
    artifacts: Path | None
    """Folder of artifacts; None where the server decides."""
    spool: Path
    """Folder of journals: one for each place, since half a run's records mean nothing elsewhere."""

    @property
    def uri(self) -> str:
        """`named`, for who opens it. Raises as `check` does."""
        self.check()
        return self.named

    def check(self) -> None:
        """Raise TrackingError where that is SQLite on a network file system."""
        from tracking.reachable import sqlite_file  # which needs this module

        file = sqlite_file(self.named)
        kind = None if file is None else network_file_system(file)
        if kind is not None:
            raise TrackingError(
                f"MLflow's database {file} would lie on a network file system ({kind}), where "
                "SQLite loses data; name a server in MLFLOW_TRACKING_URI, or a home on a local "
                "disk with --home or CARFT_HOME"
            )


def home_folder(option: str | None, environ: Mapping[str, str] | None = None) -> Path:
    """The home that was asked for, else that of CARFT_HOME, else `.carft` in the current folder."""
    chosen = os.environ if environ is None else environ
    return Path(option or chosen.get(HOME_VARIABLE) or HOME).expanduser()


def where(home: Path, environ: Mapping[str, str] | None = None) -> Where:
    """`home`/mlflow.db and `home`/mlartifacts, unless MLFLOW_TRACKING_URI says otherwise."""
    chosen = os.environ if environ is None else environ
    home = home.resolve()
    uri = chosen.get(TRACKING_VARIABLE, "").strip()
    experiment = chosen.get("MLFLOW_EXPERIMENT_NAME", "").strip() or EXPERIMENT
    spool = home / "spool"
    if uri or experiment != EXPERIMENT:
        place = f"{without_password(uri)}\n{experiment}".encode()
        spool /= hashlib.sha256(place).hexdigest()[:8]
    return Where(
        named=uri or f"sqlite:///{home / 'mlflow.db'}",
        experiment=experiment,
        artifacts=None if is_server(uri) else home / "mlartifacts",
        spool=spool,
    )


def is_server(uri: str) -> bool:
    """Whether a URI is answered by a server that keeps artifacts itself."""
    return bool(uri) and urlsplit(uri).scheme in ("http", "https", "databricks", "databricks-uc")


def without_password(uri: str) -> str:
    """The URI as it may be shown: without user and password, also those among its options."""
    scheme, mark, rest = uri.partition("://")
    if is_server(uri):
        parts = urlsplit(uri)
        rest = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).partition(mark)[2]
    elif mark and not rest.startswith("/"):
        # SQLAlchemy takes a password with / or ? in it, so what ends it is the last @.
        rest = rest.rpartition("@")[2]
    shown = _SECRET_OPTION.sub("", f"{scheme}{mark}{rest}")
    return shown.rstrip("?&") if _SECRET_OPTION.search(uri) else shown


def home_id(home: Path) -> str:
    """Who a home is on a server that several homes share; made on the first call.

    Two people may both have a sweep of the same name: its runs are told apart by this.
    """
    file = home / "id"
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        pass
    home.mkdir(parents=True, exist_ok=True)
    mine = file.with_name(f".id.{uuid.uuid4().hex}")
    mine.write_text(f"{uuid.uuid4().hex}\n")
    try:
        os.link(mine, file)  # fails where another process was first: theirs holds
    except FileExistsError:
        pass
    except OSError:  # a mount without hard links, such as CIFS
        with waiting(home / "id.lock"):
            if not file.exists():
                mine.replace(file)
    finally:
        mine.unlink(missing_ok=True)
    return file.read_text().strip()


def open_tracking(home: Path, environ: Mapping[str, str] | None = None) -> Spool:
    """The tracker of a home: MLflow behind a spool. Imports MLflow only when a run is opened.

    Raises TrackingError where its database would not be safe.
    """
    from tracking.mlflow_store import MlflowStore
    from tracking.spool import Spool

    place = where(home, environ)
    store = MlflowStore(place.uri, place.experiment, place.artifacts, home=home_id(home))
    return Spool(store, place.spool)
