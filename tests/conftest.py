"""A CLIP with random weights that opens in a moment, for every test that needs one."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic.util import pyfiles
from hypothesis import settings
from sqlalchemy import Engine, event

from benchmarks.chaos.processes import loading_once
from tests import imagenet_tree

if TYPE_CHECKING:
    from carft_sweep.carft_core.models.clip import OpenedClip
    from carft_sweep.carft_core.models.teacher import Teacher

# What loads torch is imported in the fixtures: pytest-xdist's own process, for which its workers
# wait, loads this file and runs no test.
pytest_plugins = ["tests.services.fixtures"]
# How long an example takes says nothing where other tests run beside it.
settings.register_profile("untimed", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None)
settings.load_profile("untimed")
SERVICES = frozenset({"postgres", "s3", "mlflow_server"})
"""The fixtures there; tests that ask for one run in one process, which starts each once."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what runs in the background; children would inherit it, and no test of
    # Ctrl-C could end.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As where the environment is active: printed commands name the program as a shell finds it.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

# What collecting makes stays to the end: to look through it for garbage again and again is a third
# of the time that collecting takes.
gc.disable()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file run in one process, so that what they share is made once; those of a
    group that goes through several files likewise, and those that ask for a service. The groups of
    several files come first: they take longest, and none of them is left alone at the end.
    """
    shared = set()
    for item in items:
        if item.get_closest_marker("xdist_group") is not None:
            shared.add(item)
        elif SERVICES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("services"))
            shared.add(item)
        else:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: item not in shared)


def pytest_collection_finish() -> None:
    """Look for garbage in what tests make alone, and less often than after 700 objects."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of the test's own, which is emptied behind a test that passes: all of them together
    are gigabytes. It stays, since another test in a folder of its name would meet what this process
    remembers of it.
    """
    failures = request.session.testsfailed
    yield tmp_path
    for path in tmp_path.iterdir() if request.session.testsfailed == failures else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@pytest.fixture(scope="session", autouse=True)
def own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes into the user's cache, or finds the user's data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("CARFT_DATA", raising=False)
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Nothing that this process writes need outlast a loss of power: its end, and that of any other
    process, lose nothing that was handed to the system.
    """

    def hand_over(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hand_over)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
    event.remove(Engine, "connect", hand_over)


@pytest.fixture(scope="session", autouse=True)
def migrations_loaded_once() -> Iterator[None]:
    """Databases are opened hundreds of times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyfiles, "load_module_py", loading_once(pyfiles.load_module_py))
        yield


@pytest.fixture(scope="session")
def imagenet_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with ImageNet and its shifts; it is shared: copy what is to be changed."""
    return imagenet_tree.make(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def linked_imagenet(imagenet_root: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a data root that shares all folders with `imagenet_root` but for copies of its own."""
    return lambda *own: imagenet_tree.linked(imagenet_root, tmp_path, own)


@pytest.fixture(scope="session")
def tiny_clip_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny CLIP in a folder, whose path is a `model.name`."""
    from tests.tiny_vit import write_clip

    return write_clip(tmp_path_factory.mktemp("tiny_clip"))


@pytest.fixture(scope="session")
def dropping_clip_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another, whose image tower leaves out layers at random while it trains: stochastic depth."""
    from tests.tiny_vit import TINY_CONFIG, write_clip

    tower = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"}
    vision = {**tower, "timm_drop_path": 0.5, "image_size": 32}
    config = {**TINY_CONFIG, "vision_cfg": vision}
    return write_clip(tmp_path_factory.mktemp("dropping_clip"), config)


@pytest.fixture(scope="session")
def tiny_clip(tiny_clip_files: Path) -> OpenedClip:
    """The tiny CLIP, opened. It is shared: copy its tower before training it."""
    from carft_sweep.carft_core.models.clip import open_model

    return open_model(str(tiny_clip_files))


@pytest.fixture(scope="module")
def teacher(tiny_clip: OpenedClip) -> Teacher:
    """The tiny CLIP before training, with three classes and random images."""
    from carft_sweep.carft_core.testing import toy_teacher

    return toy_teacher(tiny_clip)


@pytest.fixture
def registries() -> Iterator[None]:
    """What a test registers is gone after it."""
    from carft_sweep.carft_core.algorithms import ALGORITHMS
    from carft_sweep.carft_core.data import FAMILIES
    from carft_sweep.carft_core.merges import MERGES
    from carft_sweep.carft_core.models.prompts import TEMPLATE_SETS
    from carft_sweep.carft_core.training.optim import OPTIMISERS

    registries: list[dict[str, Any]] = [ALGORITHMS, MERGES, FAMILIES, OPTIMISERS, TEMPLATE_SETS]
    before = [dict(registry) for registry in registries]
    yield
    for registry, things in zip(registries, before, strict=True):
        registry.clear()
        registry.update(things)
