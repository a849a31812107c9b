"""Where a home's runs are recorded, what that is called, and which file systems are safe."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest

from carft_sweep.tracking import location, provenance
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.provenance import SOURCE_COMMIT, provenance_tags
from carft_sweep.tracking.store.mlflow_store import open_store
from tests.mounts import mount


def test_each_place_has_a_key_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(uri: str, experiment: str = "") -> str:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
        return location.resolve_location(tmp_path).key

    assert key("http://a") != key("http://b") != key("")
    assert key("http://a", "x") != key("http://a", "y")
    assert key("http://me:old@a") == key("http://me:new@a")
    assert location.resolve_location(Path("home"), experiment="file's").experiment == "file's"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert location.resolve_location(Path("home"), experiment="file's").experiment == "mine"


@pytest.mark.parametrize("named", ["", "sqlite:///{}/mlflow.db"])
def test_sqlite_on_a_network_file_system_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    home = tmp_path / "share" / "home"
    home.parent.mkdir()
    mount(monkeypatch, home.parent, "nfs4")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named.format(home))
    text = rf"{home}/mlflow\.db would lie on .*\(nfs4\).*server in MLFLOW_TRACKING_URI, or a home"
    for ask in (lambda: location.resolve_location(home).uri, lambda: open_store(home)):
        with pytest.raises(TrackingError, match=text):
            ask()
    assert not home.exists()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://user:pass@host:80/x", "https://host:80/x"),
        ("https://user:12/pass@host:80/x", "https://host:80/x"),
        ("postgresql://u:p%40@db/m?a=b", "postgresql://db/m?a=b"),
        ("postgresql://u:p/w?x@db/m", "postgresql://db/m"),
        ("postgresql://u:p@ss@db/m", "postgresql://db/m"),
        ("postgresql://db/m?user=u&password=p&sslmode=x", "postgresql://db/m?sslmode=x"),
        ("postgresql://db/m?user=me&sslpassword=T&sslmode=x", "postgresql://db/m?sslmode=x"),
        ("postgresql://db/m?password=pass", "postgresql://db/m"),
        ("http://u:p@server/a@b", "http://server/a@b"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("databricks", "databricks"),
        ("https://lab/mlflow?token=T", "https://lab/mlflow"),
        ("https://lab/mlflow?a=b&Access_Token=T&c=d", "https://lab/mlflow?a=b&c=d"),
        ("https://lab/mlflow?api_key=T", "https://lab/mlflow"),
        ("https://lab/x?sv=1&sig=T#top", "https://lab/x?sv=1&#top"),
    ],
)
def test_a_shown_address_holds_no_password(uri: str, shown: str) -> None:
    assert location.without_password(uri) == shown


def test_a_homes_id_is_made_once_no_two_are_alike_and_one_without_room_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(8) as threads:
        ids = {*threads.map(location.home_id, [tmp_path / "a"] * 8)}
    assert len(ids) == 1
    assert location.home_id(tmp_path / "b") not in ids
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["id"]

    def full(file: Path, text: str) -> None:
        file.touch()
        with Path("/dev/full").open("w") as device:
            device.write(text)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'c' / 'id'}'"):
        location.home_id(tmp_path / "c")
    assert [*(tmp_path / "c").iterdir()] == []


def test_where_nothing_can_be_linked_a_home_gets_its_id_under_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.link", refuse)
    script = f"""
import os, sys
from pathlib import Path
from carft_sweep.tracking.location import home_id
def refuse(*_): raise OSError({errno.EPERM}, "Operation not permitted")
os.link = refuse
print(home_id(Path({str(tmp_path)!r})))
"""
    command = [sys.executable, "-c", script]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    mine = location.home_id(tmp_path)
    assert {other.communicate(timeout=30)[0].strip() for other in processes} == {mine}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["id", "id.lock"]


def test_to_open_the_tracking_imports_no_mlflow_whose_telemetry_is_off(tmp_path: Path) -> None:
    """In a process that MLflow cannot take for a test or a CI machine, where it is off anyway."""
    code = (
        "import sys; from pathlib import Path\n"
        "from carft_sweep.tracking.store.mlflow_store import open_store\n"
        f"open_store(Path({str(tmp_path)!r})).close()\n"
        "assert not {'mlflow', 'torch', 'ray', 'optuna'} & set(sys.modules)\n"
        "from carft_sweep.tracking.location import stay_private; stay_private()\n"
        "import mlflow\n"
        "from mlflow.telemetry import get_telemetry_client, utils\n"
        "assert not utils._IS_IN_CI_ENV_OR_TESTING and not utils._IS_MLFLOW_DEV_VERSION\n"
        "assert utils.is_telemetry_disabled() and get_telemetry_client() is None\n"
    )
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env=environ, cwd=root)
    # What the user chose about usage reports stands.
    chosen = {"RAY_USAGE_STATS_ENABLED": "1"}
    location.stay_private(chosen)
    assert chosen == {**location.QUIET, "RAY_USAGE_STATS_ENABLED": "1"}


def git(folder: Path, *command: str) -> str:
    who = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), **dict.fromkeys(who, "x")}
    done = subprocess.check_output(["git", *command], cwd=folder, env=environ, text=True)
    return done.strip()


def committed(folder: Path) -> None:
    """A repository with one commit of one file."""
    folder.mkdir(exist_ok=True)
    git(folder, "init", "--initial-branch", "topic")
    (folder / "file").write_text("1")
    git(folder, "add", "file")
    git(folder, "commit", "--message", "first")


def test_the_git_state_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed(tmp_path)
    below = tmp_path / "below"
    below.mkdir()
    tags = provenance_tags(below)
    assert tags["mlflow.source.git.commit"] == git(tmp_path, "rev-parse", "HEAD")
    assert (tags["mlflow.source.git.branch"], tags["carft.git.dirty"]) == ("topic", "false")
    (tmp_path / "file").write_text("2")
    assert provenance_tags(below)["carft.git.dirty"] == "true"
    git(tmp_path, "checkout", "--detach", "--force", "HEAD")
    assert "mlflow.source.git.branch" not in provenance_tags(below)
    # Sources that were sent without git are of the commit that is told.
    for commit, dirty in (("0123abc-dirty", "true"), ("0123abc", "false")):
        monkeypatch.setenv(SOURCE_COMMIT, commit)
        tags = provenance_tags(tmp_path.parent)
        assert (tags["mlflow.source.git.commit"], tags["carft.git.dirty"]) == ("0123abc", dirty)


FILTER = '[filter "{name}"]\n\tclean = touch {ran}/filter; cat\n'
ODD = FILTER.replace("{name}", "odd")
WORKTREES = "[extensions]\n\tworktreeConfig = true\n"
OTHER_FILE = f"[core]\n\tattributesFile = .git/odd\n{ODD}"
PROCESS = '[filter "odd"]\n\tprocess = touch {ran}/filter\n'
ATTRIBUTES = {name: {"../.gitattributes": f"file filter={name}\n"} for name in ("", "a.b", "odd")}
BROUGHT = {
    "a monitor of the file system": {"config": "[core]\n\tfsmonitor = touch {ran}/monitor;\n"},
    "a filter without a name": {**ATTRIBUTES[""], "config": FILTER.replace("{name}", "")},
    "a filter with dots": {**ATTRIBUTES["a.b"], "config": FILTER.replace("{name}", "a.b")},
    "attributes that git does not track": {"info/attributes": "file filter=odd\n", "config": ODD},
    "attributes of another file": {"odd": "file filter=odd\n", "config": OTHER_FILE},
    "a filter that is a process": {**ATTRIBUTES["odd"], "config": PROCESS},
    "settings of a worktree": {**ATTRIBUTES["odd"], "config": WORKTREES, "config.worktree": ODD},
}
PROMISED = """[core]
	repositoryformatversion = 1
[extensions]
	partialClone = odd
[remote "odd"]
	promisor = true
"""
FETCHED = {
    "a helper": "\turl = ext::sh -c touch% {ran}/fetch\n[protocol.ext]\n\tallow = always\n",
    "a command for ssh": "\turl = ssh://localhost/x\n[core]\n\tsshCommand = touch {ran}/fetch;\n",
    "a program of the other end": "\turl = {ran}\n\tuploadpack = touch {ran}/fetch;\n",
}


@pytest.mark.parametrize("settings", [*BROUGHT, *FETCHED])
def test_no_setting_of_a_checkout_starts_a_program(tmp_path: Path, settings: str) -> None:
    checkout, ran = tmp_path / "checkout", tmp_path / "ran"
    ran.mkdir()
    committed(checkout)
    for name, text in (BROUGHT.get(settings) or {"config": PROMISED + FETCHED[settings]}).items():
        with (checkout / ".git" / name).open("a") as file:
            file.write(text.replace("{ran}", str(ran)))
    if settings in FETCHED:  # what is missing is fetched from whoever has promised it
        tree = git(checkout, "rev-parse", "HEAD^{tree}")
        (checkout / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
        (checkout / ".git" / "index").unlink()
    (checkout / "file").write_text("2")  # its content is compared, behind the filter
    assert "mlflow.source.git.commit" in provenance_tags(checkout)
    assert not [*ran.iterdir()]
    environ = {"PATH": os.environ["PATH"], "HOME": str(checkout)}
    subprocess.run(["git", "status"], cwd=checkout, env=environ, capture_output=True, check=False)
    assert [*ran.iterdir()], "the program does run"


def test_git_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init")
    os.mkfifo(tmp_path / "pipe")
    git(tmp_path, "config", "include.path", str(tmp_path / "pipe"))
    monkeypatch.setattr(provenance, "_GIT_SECONDS", 0.5)
    counted = Mock(side_effect=subprocess.run)
    monkeypatch.setattr(subprocess, "run", counted)
    assert not [name for name in provenance_tags(tmp_path) if "git" in name]
    assert counted.call_count == 1


def test_a_lock_is_held_once_and_can_be_taken_after_its_release(tmp_path: Path) -> None:
    lock = location.Lock(tmp_path / "lock")
    with pytest.raises(location.LockHeld, match=str(os.getpid())):
        location.Lock(tmp_path / "lock")
    lock.release()
    lock.release()
    location.Lock(tmp_path / "lock").release()


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_a_lock_that_leads_elsewhere_writes_nothing_there(tmp_path: Path, kind: str) -> None:
    elsewhere, lock = tmp_path / "elsewhere", tmp_path / "home" / ".lock"
    lock.parent.mkdir()
    if kind == "link":
        elsewhere.write_text("a file of somebody's")
    if kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(elsewhere)
    with pytest.raises(TrackingError, match=r"\.lock is .*: remove it, a lock is made anew"):
        location.Lock(lock)
    with pytest.raises(TrackingError, match=r"\.lock is .*"), location.waiting(lock):
        pass
    text = elsewhere.read_text() if elsewhere.exists() else None
    assert text == ("a file of somebody's" if kind == "link" else None)
    lock.unlink()
    location.Lock(lock).release()


@pytest.mark.parametrize("content", ["a private key", "../id", "", "0" * 31, None])
def test_an_id_that_is_none_is_not_sent(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "id"
    if content is None:
        (tmp_path / "elsewhere").write_text("0" * 32)
        file.symlink_to(tmp_path / "elsewhere")
    else:
        file.write_text(content)
    for read in (location.home_id, location.read_home_id):
        with pytest.raises(TrackingError, match=r"no id of a home|is a link") as refused:
            read(tmp_path)
        assert content is None or content == "" or content not in str(refused.value)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EACCES, errno.EAGAIN])
def test_a_file_system_without_locks_is_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def lockf(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    is_held = number in (errno.EACCES, errno.EAGAIN)
    message = None if is_held else rf"{os.strerror(number)}.*--home"
    with pytest.raises(location.LockHeld if is_held else TrackingError, match=message) as raised:
        location.Lock(tmp_path / "lock")
    assert isinstance(raised.value, location.LockHeld) == is_held


def test_what_is_not_there_yet_lies_on_the_nearest_mount_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    for kind in ("nfs4", "cifs", "fuse.sshfs", "lustre", "gpfs", "ceph"):
        mount(monkeypatch, share, kind)
        assert location.network_file_system(share / "not" / "there") == kind
        for other in (tmp_path, tmp_path / "share2"):
            assert location.network_file_system(other) is None
