"""Which database a URL names, what of it may be shown, and what its errors mean."""

from __future__ import annotations

import socket
import time

import pytest

from carft_sweep.tracking import database
from carft_sweep.tracking.database import Database, inspect_database, parse_url
from carft_sweep.tracking.errors import AccessDenied, ServiceUnreachable, TrackingError
from tests.services.postgres import Postgres

HERE = "postgresql://localhost:5432/a"


def test_a_text_of_somebody_else_is_scrubbed() -> None:
    uri = "postgresql://u:s%40cret@db/m"
    text = f"({uri}) failed: s@cret, s%40cret, http://me:other@host/x, http://host/@x"
    shown = "(postgresql://db/m) failed: ***, ***, http://host/x, http://host/@x"
    assert database.remove_passwords(text, uri) == shown
    # Too short to be told from a letter.
    assert database.remove_passwords("a b", "postgresql://u:a@db/m") == "a b"
    assert database.remove_passwords("a b", "no url") == "a b"


def test_the_database_is_looked_into(postgres: Postgres) -> None:
    name = postgres.new_database()
    ours = Database(postgres.url(name), "Optuna's database", "V")
    assert "sesame" not in str(ours)
    assert inspect_database(ours).tables == set()
    for table in ("studies", "trials", "alembic_version"):
        postgres.sql(f"CREATE TABLE {table} (version_num text)", name)
    schema = inspect_database(ours)
    assert (schema.is_optunas, schema.is_mlflows, schema.revision) == (True, False, None)
    postgres.sql("INSERT INTO alembic_version VALUES ('v1')", name)
    assert inspect_database(ours).revision == "v1"


def test_no_room_for_one_more_is_no_mistake(postgres: Postgres) -> None:
    name = postgres.new_database()
    postgres.sql(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    user = postgres.new_user("pass word")
    with pytest.raises(ServiceUnreachable, match="too many connections") as caught:
        inspect_database(Database(postgres.url(name, user, "pass word"), "Optuna's database", "V"))
    assert not isinstance(caught.value, AccessDenied)


def test_who_accepts_and_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, own = (parse_url(f"{HERE}{query}", "V") for query in ("", "?connect_timeout=9"))
    assert database.connect_args(usual)["connect_timeout"] == 5
    assert "connect_timeout" not in database.connect_args(own)
    monkeypatch.setattr(database, "_OPTIONS", {"connect_timeout": 2})  # libpq's shortest
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"postgresql://u:p@127.0.0.1:{server.getsockname()[1]}/x"
        with pytest.raises(ServiceUnreachable, match="does not answer"):
            inspect_database(Database(url, "Optuna's database", "V"))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("uri", ["hello", "postgresql://u:p@db:port/x", "postgres://db/x"])
def test_what_is_no_url_of_a_database_is_said_with_its_variable(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"^V must be like postgresql://USER:PASSWORD@HOST"):
        parse_url(uri, "V")
