"""A real PostgreSQL, of the system's package, that knows passwords and loses nothing but power."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tests.services.processes import HOST, Service, end, free_port, start

ADMIN, ADMIN_PASSWORD = "admin", "open sesame/@:%"
"""With what must be quoted in a URL."""
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


class Postgres(Service):
    """A cluster of databases on a port of its own. Connections from elsewhere need a password."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._user = "postgres" if os.getuid() == 0 else None
        self._numbers = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._create()

    def start(self) -> None:
        settings = f"port={self.port} listen_addresses={HOST} unix_socket_directories= fsync=off"
        settings += " full_page_writes=off max_connections=200 shared_buffers=32MB"
        command = [str(PROGRAMS[-1] / "postgres"), "-D", str(self._folder / "data")]
        for setting in settings.split():
            command += ["-c", setting]
        self._process = start(
            command, self._folder / "log", self._answers, user=self._user, folder=self._folder
        )

    def stop(self) -> None:
        """End it as `pg_ctl stop -m immediate` does; what was committed is there afterwards."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            end(self._process)
            self._process = None

    def url(self, database: str, user: str = ADMIN, password: str | None = ADMIN_PASSWORD) -> str:
        from sqlalchemy import URL

        made = URL.create("postgresql", user, password, HOST, self.port, database)
        return made.render_as_string(hide_password=False)

    def new_database(self, template: str = "template1") -> str:
        """The name of a fresh database; `template` names one to copy, whose users are sent away."""
        name = f"fresh_{next(self._numbers)}"
        self.send_away(template)
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def send_away(self, database: str) -> None:
        """End every connection to a database, as an administrator does."""
        everybody = f"FROM pg_stat_activity WHERE datname = '{database}'"
        self.sql(f"SELECT pg_terminate_backend(pid) {everybody}")

    def new_user(self, password: str) -> str:
        name = f"user_{next(self._numbers)}"
        self.sql(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        return name

    def sql(
        self,
        statement: str,
        database: str = "postgres",
        user: str = ADMIN,
        password: str = ADMIN_PASSWORD,
    ) -> list[tuple[Any, ...]]:
        import psycopg

        at = f"host={HOST} port={self.port} dbname={database}"
        with psycopg.connect(at, user=user, password=password, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def tables(self, database: str) -> set[str]:
        rows = self.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database)
        return {row[0] for row in rows}

    def _create(self) -> None:
        password = self._folder / "password"
        password.write_text(ADMIN_PASSWORD)
        if self._user is not None:
            for path in (self._folder, password):
                shutil.chown(path, self._user, self._user)
        command = [str(PROGRAMS[-1] / "initdb"), f"--pgdata={self._folder / 'data'}"]
        command += [f"--username={ADMIN}", f"--pwfile={password}", "--auth=scram-sha-256"]
        subprocess.run(
            [*command, "--encoding=UTF8", "--locale=C", "--no-sync"],
            check=True,
            capture_output=True,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            cwd=self._folder,
        )

    def _answers(self) -> bool:
        import psycopg

        try:
            self.sql("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def running() -> Iterator[Postgres]:
    """A PostgreSQL for as long as it lasts: two seconds to make and start."""
    # Not below pytest's folder, which root keeps from the user that PostgreSQL runs as.
    folder = Path(tempfile.mkdtemp(prefix="carft-postgres-"))
    made = Postgres(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        # Tens of thousands of files, for which Python takes twenty seconds.
        subprocess.run(["rm", "-rf", folder], check=True)
