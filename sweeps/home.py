"""The home: the one folder that holds all state of sweeps, and where each thing lies in it."""

from __future__ import annotations

import errno
import os
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.location import (
    HOME_VARIABLE,
    OBJECT_STORES,
    home_folder,
    network_file_system,
    resolve_location,
    waiting,
)
from carft_sweep.tracking.ownership import check_home, make_home
from carft_sweep.tracking.program import program

_ANOTHER = f"name another folder with --home or {HOME_VARIABLE}"


@dataclass(frozen=True)
class Home:
    """Paths below the home; nothing is created before it is needed."""

    path: Path
    is_trusted: bool = False
    """Whether the user vouches for all that it holds, whoever wrote it (`--trust-home`)."""

    @property
    def runs(self) -> Path:
        """The folder that holds one folder for each run, named by the run's training digest."""
        return self.path / "runs"

    @property
    def sweeps(self) -> Path:
        """The folder of the sweeps' folders, by name."""
        return self.path / "sweeps"

    def sweep(self, name: str) -> Path:
        """Return the folder of a sweep: its ledger, the sweep file as run, results, its lock."""
        return self.sweeps / name

    def command(self, *words: str) -> str:
        """Return a command to type, with the option of the home only if the command needs it."""
        is_found = home_folder(None).absolute() == self.path.absolute()
        of_home = () if is_found else ("--home", str(self.path))
        return f"{program()} {shlex.join([*words, *of_home])}"

    def absolute(self) -> Home:
        """Return the same home by a path that does not depend on the current folder."""
        return replace(self, path=self.path.absolute())

    def check_owner(self) -> None:
        """Raise RequestError where another account could have written the home's content."""
        if self.is_trusted:
            return
        try:
            check_home(self.path)
        except TrackingError as error:
            raise RequestError(str(error)) from None
        except OSError as error:
            raise RequestError(
                f"the home {self.path} cannot be entered: {error.strerror}; {_ANOTHER}"
            ) from None

    def check(self) -> None:
        """Raise RequestError where the home's file systems would lose or damage files."""
        kind = network_file_system(self.path)
        if kind in OBJECT_STORES:
            raise RequestError(
                f"the home {self.path} lies on an object store ({kind}), which has neither locks "
                f"nor a way to append; {_ANOTHER}: on a local disk or a shared file system"
            )
        try:
            resolve_location(self.path).check()
        except TrackingError as error:
            raise RequestError(str(error)) from None

    def prepare(self) -> None:
        """Create the home's folder, with a `.gitignore` that keeps it out of repositories. Only the
        user may enter a new home, unless it is shared on purpose. Raises RequestError when the
        folder cannot be written, and as `check` and `check_owner` do."""
        self.check()
        try:
            make_home(self.path)
            self.check_owner()  # another account may have been first
            ignore = self.path / ".gitignore"
            with suppress(FileExistsError), ignore.open("x") as file:  # follows no link
                file.write("*\n")
            if not os.access(self.path, os.W_OK | os.X_OK):
                is_read_only = os.statvfs(self.path).f_flag & os.ST_RDONLY
                reason = errno.EROFS if is_read_only else errno.EACCES
                raise OSError(reason, os.strerror(reason))
        except OSError as error:
            raise RequestError(
                f"the home {self.path} cannot be written: {error.strerror}; {_ANOTHER}"
            ) from None
        if network_file_system(self.path):
            self._try_locks()

    def _try_locks(self) -> None:
        """Check early that file locks work: later a failure would look like another's lock."""
        try:
            with waiting(self.path / "home.lock"):
                pass
        except OSError as error:
            kind = network_file_system(self.path)
            raise RequestError(
                f"no file can be locked in the home {self.path} on {kind}: {error.strerror}; "
                "mount it so that locks reach every host (Lustre: with `flock`, NFS: without "
                f"`nolock`), or {_ANOTHER}"
            ) from None


def find_home(option: str | Path | None, *, trust: bool = False) -> Home:
    """Return the home that `--home` names, else CARFT_HOME, else `.carft` in the current folder.
    Raises RequestError for a home that another account could have written, unless `trust` or
    CARFT_SHARED_HOMES says otherwise: a home's content decides what is read, written and run."""
    home = Home(home_folder(option), is_trusted=trust)
    home.check_owner()
    return home
