"""Under which names MLflow's server answers, by MLflow's own rules."""

from __future__ import annotations

import socket

import pytest
from mlflow.server.security_utils import is_allowed_host_header, should_block_cors_request

from tracking.ui_server import allowed_hosts, allowed_origins, check_name, is_loopback

NAMES = ("mlflow.lab.example", "*.team.example", "10.0.0.7:5000", "[fd00::7]")


@pytest.mark.parametrize(
    ("host", "answers"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("mlflow.lab.example", True),
        ("mlflow.lab.example:8443", True),
        ("a.team.example:1", True),
        ("10.0.0.7:5000", True),
        ("[fd00::7]:5000", True),
        ("10.0.0.7", False),
        ("10.0.0.8:5000", False),
        ("192.168.0.1", False),  # which MLflow lets in by itself
        ("team.example", False),
        ("mlflow.lab.example.elsewhere.example", False),
        ("mlflow.lab.example:5000.elsewhere.example", True),  # no browser sends such a port
        ("", False),
    ],
)
def test_it_answers_to_its_names_and_to_nothing_else(host: str, answers: bool) -> None:
    hosts = allowed_hosts("127.0.0.1", NAMES)
    assert is_allowed_host_header(hosts, host) == answers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_on_every_address_it_knows_this_machines_name(host: str) -> None:
    hosts = allowed_hosts(host, ())
    assert is_allowed_host_header(hosts, f"{socket.gethostname()}:5000")
    assert not is_allowed_host_header(hosts, "elsewhere.example:5000")


def test_on_one_address_it_knows_that() -> None:
    assert is_allowed_host_header(allowed_hosts("10.0.0.9", ()), "10.0.0.9:5000")
    assert is_allowed_host_header(allowed_hosts("fd00::9", ()), "[fd00::9]:5000")


@pytest.mark.parametrize(
    ("page", "blocked"),
    [
        ("https://mlflow.lab.example", False),
        ("http://mlflow.lab.example:8080", False),
        ("https://elsewhere.example", True),
        ("null", True),
    ],
)
def test_only_pages_of_its_names_may_ask_it(page: str, blocked: bool) -> None:
    origins = allowed_origins(allowed_hosts("127.0.0.1", NAMES))
    assert should_block_cors_request(page, "POST", origins) == blocked


def test_what_is_no_host_is_refused() -> None:
    for name in NAMES:
        check_name(name)
    for name in ("*", "http://lab", "lab/mlflow", "a b", "-lab", "lab:", "*lab", "[fd00::7"):
        with pytest.raises(ValueError, match=r"host"):
            check_name(name)


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("localhost", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("lab", False),
        ("10.0.0.1", False),
    ],
)
def test_which_addresses_this_machine_alone_reaches(host: str, alone: bool) -> None:
    assert is_loopback(host) == alone
