"""What is sent: the files and variables of a sweep, and nothing secret."""

from __future__ import annotations

import io
import os
import time
import zipfile
from pathlib import Path

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.secrets import NAMES
from carft_sweep.sweeps.submit.package import (
    BY_VALUE,
    Bundle,
    content_exclusion,
    has_password,
    is_secret,
    job_variables,
    name_exclusion,
    pack,
    pip_requirements,
    repository_of,
    secret_values,
    source_commit,
    word_has_secret,
)
from tests.sweeps.submit.conftest import Git


def packed(bundle: Bundle) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(bundle.data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_same_files_make_the_same_archive_whenever_they_were_written(project: Path) -> None:
    first = pack(project)
    for path in project.iterdir():
        os.utime(path, (1, 1))
    assert pack(project).data == first.data
    assert packed(first)["mine.py"] == b"X = 1\n"
    (project / "mine.py").write_text("X = 2\n")
    assert pack(project).data != first.data


def test_executable_files_stay_so(project: Path) -> None:
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o700)
    with zipfile.ZipFile(io.BytesIO(pack(project).data)) as archive:
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
    assert modes["run.sh"] == 0o755
    assert modes["mine.py"] == 0o644


def test_what_is_not_sent_is_named_with_the_reason(git: Git, project: Path) -> None:
    del git
    for name in ("home/runs/a", ".carft/id", "data/big.bin", "key.pem", "notes.txt"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("the-password" if name == "notes.txt" else name)
    (project / "kept.txt").write_text("kept")
    bundle = pack(project, home=project / "home", exclude=["data"], secrets=["the-password"])
    assert set(packed(bundle)) == {".gitignore", "kept.txt", "mine.py", "tiny.yaml"}
    assert set(bundle.names) == set(packed(bundle))
    assert bundle.notes == (
        "not sent: .carft/id (in a home)",
        "not sent: data/big.bin (--exclude data)",
        "not sent: home/runs/a (in a home)",
        "not sent: key.pem (its name is one for secrets)",
        "not sent: notes.txt (holds a secret of this environment)",
    )


def test_too_much_is_refused_with_the_largest_files(project: Path) -> None:
    (project / "weights.bin").write_bytes(bytes(3_000_000))
    with pytest.raises(RequestError, match=r"more than 1\.0 MB would be sent") as refused:
        pack(project, max_bytes=10**6)
    assert "  3.0 MB  weights.bin" in str(refused.value)
    assert "--exclude PATTERN" in str(refused.value)
    assert pack(project, max_bytes=10**6, exclude=["*.bin"]).size < 1000


def test_a_clone_of_the_product_brings_it_by_its_links(project: Path) -> None:
    assert not pack(project).has_product
    for name in ("sweeps/__init__.py", "carft_sweep/__main__.py"):
        (project / name).parent.mkdir()
        (project / name).write_text(f"{name!r}\n")
    assert not pack(project).has_product
    (project / "carft_sweep" / "sweeps").symlink_to("../sweeps")
    bundle = pack(project)
    assert bundle.has_product
    with zipfile.ZipFile(io.BytesIO(bundle.data)) as archive:
        linked = archive.read("carft_sweep/sweeps/__init__.py")
    assert linked == (project / "sweeps" / "__init__.py").read_bytes()


def test_a_link_to_a_folder_elsewhere_is_not_followed(project: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.py").write_text("")
    (project / "link").symlink_to(tmp_path / "elsewhere")
    bundle = pack(project)
    assert "link/a.py" not in bundle.names
    assert "not sent: link (a link out of the folder)" in bundle.notes


def test_a_repository_goes_as_it_is_without_what_git_ignores(git: Git, project: Path) -> None:
    commit = git("rev-parse", "HEAD")
    assert source_commit(project) == commit
    (project / "mine.py").write_text("X = 2\n")
    (project / "new file.txt").write_text("new")
    (project / "ignored.bin").write_text("no")
    (project / ".git" / "info" / "exclude").write_text("also.txt\n")
    (project / "also.txt").write_text("no")
    (project / "tiny.yaml").unlink()
    assert packed(pack(project)) == {
        ".gitignore": b"ignored*\n",
        "mine.py": b"X = 2\n",
        "new file.txt": b"new",
    }
    assert source_commit(project) == f"{commit}-dirty"


def test_links_are_followed_inside_and_not_out(git: Git, project: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("no")
    (project / "folder").mkdir()
    (project / "folder" / "file").write_text("yes")
    (project / "folder" / "key.pem").write_text("no")
    for name, target in (
        ("inside", "folder/file"),
        ("out", str(tmp_path / "outside")),
        ("folder link", "folder"),
        ("disguised", "folder/key.pem"),
    ):
        (project / name).symlink_to(target)
    git("add", "-A")
    git("commit", "-qm", "links")
    bundle = pack(project)
    assert packed(bundle)["inside"] == packed(bundle)["folder link/file"] == b"yes"
    assert set(bundle.notes) == {
        "not sent: out (a link out of the folder)",
        "not sent: folder link/key.pem (its name is one for secrets)",
        "not sent: disguised (its name is one for secrets)",
        "not sent: folder/key.pem (its name is one for secrets)",
    }


def test_submodules_are_sent_with_their_files(git: Git, project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "part.py").write_text("P = 1\n")
    git("init", "-q", folder=other)
    git("add", "-A", folder=other)
    git("commit", "-qm", "part", folder=other)
    git("submodule", "add", "-q", str(other), "parts")
    git("commit", "-qm", "parts")
    assert packed(pack(project))["parts/part.py"] == b"P = 1\n"
    git("submodule", "deinit", "-q", "-f", "parts")
    assert "not sent: parts (no regular file)" in pack(project).notes


def test_a_folder_without_git_is_sent_without_hidden_folders(project: Path) -> None:
    for name in ("below/a.txt", ".venv/lib.py", "below/__pycache__/x.pyc"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("")
    assert set(pack(project).names) == {".gitignore", "below/a.txt", "mine.py", "tiny.yaml"}
    assert source_commit(project) is None


def test_a_repository_without_a_commit_has_none(project: Path, git: Git) -> None:
    git("update-ref", "-d", "HEAD")
    assert source_commit(project) is None
    assert set(pack(project).names) == {".gitignore", "mine.py", "tiny.yaml"}


def test_the_repository_is_found_from_below_and_not_elsewhere(
    git: Git, project: Path, tmp_path: Path
) -> None:
    del git
    (project / "a" / "b").mkdir(parents=True)
    assert repository_of(project / "a" / "b") == project
    assert repository_of(tmp_path) is None


def test_a_repository_that_git_cannot_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").write_text("gitdir: /nowhere")
    with pytest.raises(RequestError, match="git ls-files failed in"):
        pack(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="git is not installed"):
        pack(tmp_path)


def test_what_is_no_secret_is_sent_and_what_is_one_is_named() -> None:
    made = job_variables(
        {
            "MLFLOW_TRACKING_URI": "https://server",
            "MLFLOW_TRACKING_PASSWORD": "no",
            "MLFLOW_EXPERIMENT_NAME": "",
            "CARFT_OPTUNA_STORAGE": "postgresql://me:no@host/db",
            "CARFT_DATA": "/data",
            "CARFT_HOME": "/home/here",
            "PGPASSWORD_FILE": "/run/no",
            "SOME_KEY": "no",
            "RAY_AUTH_TOKEN": "no",
            "PATH": "/bin",
        },
        ["A=1", "CARFT_DATA=/there"],
        ["HF_TOKEN=/run/secrets/hf"],
    )
    assert made.sent == {
        "RAY_JOB_STOP_WAIT_TIME_S": "600",
        "MLFLOW_TRACKING_URI": "https://server",
        "CARFT_DATA": "/there",
        "A": "1",
        "HF_TOKEN_FILE": "/run/secrets/hf",
    }
    assert made.withheld == ("CARFT_OPTUNA_STORAGE", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD")
    assert made.notes == ()


def test_a_secrets_value_goes_under_no_other_name() -> None:
    environ = {"SLACK_TOKEN": "hidden-x-y", "MLFLOW_NOTE": "uses hidden-x-y"}
    assert "MLFLOW_NOTE" not in job_variables(environ).sent
    with pytest.raises(RequestError, match="--env A: this is a secret"):
        job_variables(environ, ["A=hidden-x-y"])


def test_a_secret_that_the_cluster_has_is_not_missed() -> None:
    made = job_variables({"PGPASSWORD": "no"}, secrets=["PGPASSWORD=/run/pg"])
    assert made.withheld == ()


@pytest.mark.parametrize(
    ("uri", "host"), [("http://localhost:5000", "localhost"), ("http://[::1]:5000", "::1")]
)
def test_an_address_of_this_machine_is_doubted(uri: str, host: str) -> None:
    (note,) = job_variables({"MLFLOW_TRACKING_URI": uri}).notes
    assert note.startswith(f"MLFLOW_TRACKING_URI names {host}")


def test_other_doubts() -> None:
    (note,) = job_variables({"CARFT_DATA": "data", "MLFLOW_TRACKING_URI": "http://[x"}).notes
    assert note.startswith("CARFT_DATA is data, relative")


@pytest.mark.parametrize(
    ("env", "secrets", "said"),
    [
        (["MY_TOKEN=hidden-x"], [], "--env MY_TOKEN: this is a secret"),
        (["A=http://me:hidden-x@host"], [], "--env A: this is a secret"),
        (["hidden-x"], [], r"--env \.\.\.: must be NAME=VALUE"),
        (["A"], [], "--env A: must be NAME=VALUE"),
        (["PYTHONPATH=/x"], [], "--env PYTHONPATH: the driver sets it"),
        ([], ["HF_TOKEM=/x"], "unknown secret 'HF_TOKEM'; did you mean 'HF_TOKEN'"),
        ([], ["HF_TOKEN=x"], "must be an absolute path on the cluster"),
    ],
)
def test_what_is_refused_shows_no_secret(env: list[str], secrets: list[str], said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        job_variables({}, env, secrets)
    assert "hidden-x" not in str(refused.value)


def test_packages_come_from_words_and_files(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("# mine\n\nopen_clip_torch>=3 # newest\nray-utils\n")
    assert pip_requirements(["wandb", str(file)]) == ["wandb", "open_clip_torch>=3", "ray-utils"]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("nowhere.txt", "cannot be read"),
        ("-e .", "a path of this machine"),
        ("./mine", "a path of this machine"),
        ("/mine.whl", "a path of this machine"),
        ("ray[tune]==2.44", "has the Ray of its cluster"),
        ("Ray", "has the Ray of its cluster"),
        ("git+https://me:hidden-x@host/mine.git", "an address with a password"),
    ],
)
def test_packages_that_cannot_serve_are_refused(item: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        pip_requirements([item])
    assert "hidden-x" not in str(refused.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != BY_VALUE])
def test_every_named_secret_is_one_and_so_is_its_file(name: str) -> None:
    assert is_secret(name, "x")
    assert is_secret(f"{name}_FILE", "/run/secrets/x")


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("MY_API_KEY", "x", True),
        ("db_password", "x", True),
        ("MLFLOW_TRACKING_URI", "http://server:5000", False),
        ("MLFLOW_TRACKING_URI", "http://me:pw@server:5000", True),
        ("MLFLOW_TRACKING_URI", "https://token@server", True),
        ("CARFT_OPTUNA_STORAGE", "postgresql://me@host/optuna", False),
        ("CARFT_OPTUNA_STORAGE", "postgresql://me:pw@host/optuna", True),
        ("CARFT_OPTUNA_STORAGE", "postgresql://host/optuna?password=pw", True),
        # As SQLAlchemy writes a blank, and as people write a slash.
        ("CARFT_OPTUNA_STORAGE", "postgresql://me:open sesame%2F@host/optuna", True),
        ("CARFT_OPTUNA_STORAGE", "postgresql://me:a/b@host/optuna", True),
        ("MLFLOW_EXPERIMENT_NAME", "a: b@c", False),
        ("CARFT_PASS", "x", True),
        ("CARFT_DSN", "x", True),
        ("MLFLOW_AUTH_CONFIG_PATH", "/etc/mlflow.ini", False),
        ("MLFLOW_TRACKING_AUTH", "kubernetes", False),  # the name of a plugin
    ],
)
def test_a_variable_is_a_secret_by_name_or_by_a_password_in_it(
    name: str, value: str, secret: bool
) -> None:
    assert is_secret(name, value) is secret


def test_an_address_of_git_without_a_password_is_none() -> None:
    assert not has_password("git+ssh://git@github.com/me/mine.git")
    assert has_password("git+https://ghp_x@github.com/me/mine.git")


@pytest.mark.parametrize(
    "name",
    [
        *(".env", "a/.env.local", "prod.env", "x.pem", "ssh/id_rsa", "id_ed25519", ".netrc"),
        *("credentials", "a/credentials.json", "gcp-credentials.yaml", "secrets.toml", ".pypirc"),
        *("docker/secrets/password", ".aws/config", ".kube/x", ".git/config", "b/.git"),
        *("service-account-7.json", "kubeconfig.yaml", ".pgpass", "KEY.PEM"),
        *(
            "token",
            "hf_token",
            ".huggingface/token",
            "password.txt",
            "passwords.txt",
            "kaggle.json",
        ),
        *(
            "client_secret_7.apps.json",
            "gcp-key.json",
            ".s3cfg",
            ".boto",
            ".my.cnf",
            ".vault-token",
        ),
        *("terraform.tfstate", "terraform.tfstate.backup", "prod.tfvars", "me.ppk", "me.asc"),
        *("lab.ovpn", "rclone.conf", ".dockercfg", "pip.conf", ".config/gh/hosts.yml"),
        *("cookies.txt", ".secrets/mlflow-password", "mlflow-password", "optuna-url", "ray-token"),
        *(".databrickscfg", ".bash_history", "ssh_host_ed25519_key", "creds.json", "deploy_key"),
        *(".env~", "accessKeys.csv", "ui/session-key", "lab_creds.yaml", "me_deploy_key"),
        # Folders in any case and with a dot, also of what is harmless elsewhere.
        *("Secrets/x.txt", ".secrets/x", "SECRETS/a/b.csv", "secrets/prod.py", ".ssh/config.md"),
    ],
)
def test_files_for_secrets_stay(name: str) -> None:
    assert name_exclusion(name)


@pytest.mark.parametrize(
    "name",
    [
        *("sweeps/secrets.py", "docs/secrets.md", "env.yaml", ".env.example", "id_rsa.pub"),
        *("keys.csv", "environment.yml", "tiny.yaml", ".gitignore", "src/tokens.txt"),
        *("tokenizer.json", "hosts.yml", "added_tokens.json", "passwords.py", "docker/Dockerfile"),
    ],
)
def test_other_files_go(name: str) -> None:
    assert name_exclusion(name) is None


def test_what_a_file_holds_can_keep_it_here() -> None:
    values = secret_values(
        {
            "MLFLOW_TRACKING_PASSWORD": "long-enough",
            "CARFT_OPTUNA_STORAGE": "postgresql://me:pass%20word@host/db",
            "MLFLOW_TRACKING_USERNAME": "researcher",
            "PGPASSWORD": "short",
            "AWS_CONFIG_KEY": "/a/path/of/a/file",
            "PGPASSWORD_FILE": "no such file",
            "EDITOR": "long enough too",
        }
    )
    assert set(values) == {"long-enough", "postgresql://me:pass%20word@host/db", "pass word"}
    held = "holds a secret of this environment"
    assert content_exclusion("a.txt", b"x: long-enough", values) == held
    assert content_exclusion("a.txt", b"x: pass word", values)
    assert content_exclusion("a.txt", b"researcher short", values) is None
    assert secret_values({"X_TOKEN_URL": "http://[broken:x@y"})


BEGIN = "-----BEGIN "
"""Apart from what follows, or this file would count as one with a key."""
LETTERS = "aB3" * 20
TOKENS = {
    "aws": "AKIA" + "ABCDEFGH12345678",
    "hugging face": "hf_" + LETTERS[:34],
    "github": "ghp_" + LETTERS[:36],
    "github, fine": "github_pat_" + LETTERS[:30],
    "slack": "xoxb-" + LETTERS[:24],
    "slack hook": "https://hooks.slack.com/services/" + "T0AAA/B0BBB/" + LETTERS[:24],
}


@pytest.mark.parametrize(
    "content",
    [
        f"{BEGIN}RSA PRIVATE KEY-----\n{'A' * 64}\n",
        f"{BEGIN}RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256\n\n{'A' * 64}\n",
        f'{{"private_key": "{BEGIN}PRIVATE KEY-----\\nMIIE{"A" * 60}\\n"}}',
        f"key: |\n    {BEGIN}EC PRIVATE KEY-----\n    {'A' * 64}\n",
        f"{BEGIN}OPENSSH PRIVATE KEY-----\nb3Bl\n",
        f"{BEGIN}PGP PRIVATE KEY BLOCK-----\n\nlQ\n",
        "PuTTY-User-Key-File-" + "3: ssh-ed25519\n",
    ],
    ids=["pem", "encrypted", "json", "yaml", "openssh", "pgp", "putty"],
)
def test_a_private_key_in_any_form_stays(content: str) -> None:
    for name in ("notes.txt", "settings.json", "keys.py"):
        assert content_exclusion(name, content.encode(), ()) == "holds a private key"


@pytest.mark.parametrize("service", TOKENS)
def test_a_token_stays_and_goes_in_no_option(service: str) -> None:
    token = TOKENS[service]
    assert content_exclusion("a.py", f"x = '{token}'".encode(), ()) == "holds a token"
    assert content_exclusion("a.bin", b"\0" + token.encode() + b"\0", ()) == "holds a token"
    assert word_has_secret(f"description={token}")
    assert is_secret("ANYTHING", token)


@pytest.mark.parametrize(
    "word",
    [
        *("https://h/x?sig=abc", "https://h/x?a=1&access_token=abc", "https://h/#access_token=abc"),
        *("https://s3/b?X-Amz-Credential=a&X-Amz-Signature=b", "https://h?api_key=x"),
    ],
)
def test_a_signed_address_goes_in_no_option(word: str) -> None:
    assert word_has_secret(word)
    with pytest.raises(RequestError, match="--env A: this is a secret"):
        job_variables({}, [f"A={word}"])


@pytest.mark.parametrize(
    "word", ["https://h/x?page=2", "https://h/x?sigma=3", "hf_hub", "task-" + LETTERS, "AKIA"]
)
def test_other_words_go(word: str) -> None:
    assert not word_has_secret(word)


def test_headers_of_requests_are_a_secret() -> None:
    made = job_variables({"MLFLOW_HTTP_HEADERS": "Authorization: Bearer x"})
    assert made.withheld == ("MLFLOW_HTTP_HEADERS",)


def test_an_address_with_a_password_stays_but_in_programs_and_pages_which_are_named(
    project: Path,
) -> None:
    address = b"url: postgresql://u:pw@h/db\n"
    for name in ("settings.yaml", "page.md", "own.py"):
        (project / name).write_bytes(address)
    (project / "links.csv").write_bytes(b"https://h/x.jpg?sig=abc\n")
    (project / "weights.bin").write_bytes(b"\0" + address)
    (project / "large.txt").write_bytes(address + b"a" * 10**6)
    bundle = pack(project)
    assert bundle.notes == ("not sent: settings.yaml (holds an address with a password)",)
    assert bundle.doubtful == ("links.csv", "own.py", "page.md")


def test_a_long_line_is_searched_in_no_time() -> None:
    began = time.monotonic()
    for text in ("a" * 10**6, "://a" * 250_000, "?" + "a" * 10**6, "a:" * 500_000):
        assert not has_password(text)
    assert time.monotonic() - began < 30  # where it took time, it would be hours
