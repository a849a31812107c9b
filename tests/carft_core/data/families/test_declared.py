"""A declared family: what it reads from the folders, what it refuses, and when it is the same."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.data import FamilyData
from carft_sweep.carft_core.data.base import DataConfig, Split
from carft_sweep.carft_core.data.families.declaration import Declaration
from carft_sweep.carft_core.data.families.image_folder import IMAGE_FOLDER, Declared, Reader
from carft_sweep.carft_core.errors import Route
from tests.carft_core.refusals import refusal, refused

NAMES = ("cat", "hot_dog", "zebra")


def fill(root: Path, folder: str, names: Mapping[str, int]) -> None:
    """Files of different sizes that end like images; nothing here decodes one."""
    for name, count in names.items():
        place = root / folder / name
        place.mkdir(parents=True)
        for index in range(count):
            (place / f"{index}.png").write_bytes(b"x" * (1 + index))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    fill(folder, "one", dict.fromkeys(NAMES, 4))
    fill(folder, "two", {"cat": 2})
    fill(folder, "held_out", dict.fromkeys(NAMES, 2))
    fill(folder, "shifts/night", {"cat": 2, "Zebras": 1, "junk": 1})
    return folder


def declare(root: Path, **keys: Any) -> Declared:
    usual = {"name": "mine", "root": root.name, "train": ["one", "two"], "test": "held_out"}
    fields = {key: value for key, value in (usual | keys).items() if value is not None}
    lines: Mapping[Route, int] = {(key,): line for line, key in enumerate(fields, 1)}
    return Declared(Declaration.model_validate(fields), root.parent / "mine.family.yaml", "", lines)


def data_of(root: Path, **keys: Any) -> FamilyData:
    return declare(root, **keys).open(DataConfig(family="mine"))


def night(**rules: Any) -> dict[str, Any]:
    """A shift in a folder of which only `cat` is a class of train."""
    return {"shifts": {"night": {"folders": "shifts/night", **rules}}}


def misfits(root: Path, **keys: Any) -> list[str]:
    first, *rest = refusal(data_of, root, **keys).splitlines()
    assert first == f"data.family: mine is not as declared in {root}:"
    return [line.removeprefix("  mine.family.yaml") for line in rest]


def counts(data: FamilyData, split: Split) -> dict[str, int]:
    labels = split.labels.tolist()
    images = {name: labels.count(index) for index, name in enumerate(data.class_names)}
    return {name: count for name, count in images.items() if count}


def test_folders_of_any_name_are_joined_and_named(root: Path) -> None:
    data = data_of(root, class_names={"cat": "tabby"})
    assert data.class_names == ("tabby", "hot dog", "zebra")
    assert counts(data, data.train) == {"tabby": 6, "hot dog": 4, "zebra": 4}
    assert counts(data, data.id_test) == dict.fromkeys(data.class_names, 2)
    assert data.train.ids[3:6] == ("one/cat/3.png", "two/cat/0.png", "two/cat/1.png")
    assert (data.val, data.shifts, data.train.classes) == (None, {}, None)


def test_a_shift_knows_some_classes_and_names_them_its_own_way(root: Path) -> None:
    shifts = {
        "night": {"folders": "shifts/night", "rename": {"Zebras": "zebra"}, "exclude": "junk"},
        "few": {"folders": "shifts/night", "classes": ["cat"]},
        "part": {"folders": "held_out", "exclude": ["hot_dog"]},
    }
    data = data_of(root, shifts=shifts)
    assert counts(data, data.shifts["night"]) == {"cat": 2, "zebra": 1}
    assert (data.shifts["night"].classes, data.shifts["few"].classes) == ((0, 2), (0,))
    assert counts(data, data.shifts["part"]) == {"cat": 2, "zebra": 2}


@pytest.mark.parametrize("keys", [{"exclude": ["zebra"]}, {"classes": ["hot_dog", "cat"]}])
def test_a_family_may_have_some_of_the_classes(root: Path, keys: dict[str, Any]) -> None:
    shift = {"night": {"folders": "held_out"}}
    data = data_of(root, **keys, shifts=shift)
    assert data.class_names == ("cat", "hot dog")
    for split in (data.train, data.id_test, data.shifts["night"]):
        assert counts(data, split).keys() == {"cat", "hot dog"}
        assert split.classes is None
    assert data.digest == data_of(root, exclude="zebra", shifts=shift).digest
    fill(root, "held_out", {"junk": 1})  # of the test alone
    assert len(data_of(root, exclude="junk").class_names) == 3


def test_the_root_itself_may_be_a_folder_of_classes(tmp_path: Path) -> None:
    fill(tmp_path / "images", ".", dict.fromkeys(NAMES, 5))
    data = data_of(tmp_path / "images", train=".", test=None, test_fraction=0.2)
    assert counts(data, data.id_test) == dict.fromkeys(data.class_names, 1)
    assert counts(data, data.train) == dict.fromkeys(data.class_names, 4)
    assert not set(data.id_test.ids) & set(data.train.ids)
    assert all(name.count("/") == 1 for name in data.id_test.ids)


def test_a_carved_test_stays_when_other_images_come_and_seeds_change(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    fill(folder, "all", dict.fromkeys(NAMES, 20))
    mine = declare(folder, train="all", test=None, test_fraction=0.25)
    before = mine.open(DataConfig(family="mine")).id_test.ids
    assert len(before) == 15
    assert mine.open(DataConfig(family="mine", split_seed=7)).id_test.ids == before
    (folder / "all" / "cat" / "new.png").write_bytes(b"x")
    after = mine.open(DataConfig(family="mine")).id_test.ids
    assert len(set(before) - set(after)) <= 1


def test_data_root_goes_before_the_declared_root(root: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(root, tmp_path / "elsewhere" / "pictures")
    shutil.rmtree(root)
    assert len(declare(root).open(DataConfig(family="mine", root=str(moved))).train) == 14
    refused(r"mine\.family\.yaml:2: root: .*images does not exist", data_of, root)
    gone = DataConfig(family="mine", root=str(tmp_path / "gone"))
    refused(r"^data\.root: .*gone does not exist", declare(root).open, gone)


def test_the_digest_is_of_the_content_and_not_of_the_place(root: Path, tmp_path: Path) -> None:
    keys = night(classes=["cat"])
    before = data_of(root, **keys).digest
    moved = shutil.copytree(root, tmp_path / "elsewhere" / "pictures")
    assert data_of(moved, **keys).digest == before
    assert data_of(root, **keys, summary="another word for it").digest == before
    changes: list[dict[str, Any]] = [
        {"shifts": None},
        {"class_names": {"cat": "tabby"}},
        {"exclude": ["zebra"]},
        {"train": "one"},
        {"train": "held_out", "test": "one"},
        {"shifts": {"dark": keys["shifts"]["night"]}},
    ]
    digests = [data_of(root, **{**keys, **change}).digest for change in changes]
    (root / "one" / "cat" / "0.png").write_bytes(b"another size")
    digests.append(data_of(root, **keys).digest)
    assert len({before, *digests}) == 8


def test_the_fixed_layout_declared_has_the_same_splits(tmp_path: Path) -> None:
    for folder in ("train", "val", "test", "shifts/dark"):
        fill(tmp_path / "images", folder, dict.fromkeys(NAMES, 2))
    fixed = IMAGE_FOLDER.open(DataConfig(family="image_folder", root=str(tmp_path / "images")))
    shifts = {"dark": "shifts/dark"}
    declared = data_of(tmp_path / "images", train="train", val="val", test="test", shifts=shifts)
    assert declared.class_names == fixed.class_names
    ours, theirs = (
        [
            (split.ids, split.labels.tolist())
            for split in (data.train, data.id_val, data.id_test, data.shifts["dark"])
        ]
        for data in (declared, fixed)
    )
    assert ours == theirs


def test_a_file_may_say_what_classes_are_called(root: Path) -> None:
    (root.parent / "names.json").write_text(
        '{"cat": "tabby cat", "hot_dog": "sausage", "zebra": "striped horse"}'
    )
    data = data_of(root, class_names_file="names.json")
    assert data.class_names == ("tabby cat", "sausage", "striped horse")
    (root.parent / "names.json").write_text('{"cat": "tabby cat"}')
    assert misfits(root, class_names_file="names.json") == [
        ":5: class_names_file: names.json has no name for the class folder 'hot_dog'",
        ":5: class_names_file: names.json has no name for the class folder 'zebra'",
    ]
    (line,) = misfits(root, class_names_file="none.json")
    assert line.endswith("none.json cannot be read: No such file or directory")


THERE, CLASSES = "; there are held_out, one, shifts, two", "there are cat, hot_dog, zebra"
AT = ":5: shifts.night"
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"train": "oen"}, ":3: train: there is no oen/ in ROOT; did you mean 'one'?", THERE),
    ({"train": ["one", "x/y"]}, ":3: train[1]: there is no x/y/ in ROOT", ""),
    ({"train": ["one", "one"]}, ":3: train[1]: one/ is in the list twice", ""),
    ({"train": "one/cat"}, ":3: train: one/cat/ has no class folders; its images lie outside", ""),
    ({"classes": ["cat"]}, ":3: train: has the single class 'cat'; two are the least", ""),
    ({"classes": ["cat", "zebra", "owl"]}, ":5: classes[2]: no class folder of train is", CLASSES),
    ({"exclude": ["zebrra"]}, ":5: exclude[0]: no class folder is named", "mean 'zebra'?"),
    ({"class_names": {"cta": "a cat"}}, ":5: class_names.cta: no class folder", "mean 'cat'?"),
    ({"class_names": {"cat": "zebra"}}, ":5: class_names: the classes cat, zebra have one", ""),
    ({"test": "two"}, ":4: test: lacks classes that train has: hot_dog, zebra", "; `exclude` leav"),
    ({"test": "shifts/night"}, ":4: test: has folders that are no class of train: Zebra", "junk"),
    ({"test": "one"}, ":4: test: shares 12 images with train, such as one/cat/0.png", ""),
    ({"val": "held_out"}, ":4: test: shares 6 images with val, such as held_out/cat/0.png", ""),
    (night(), f"{AT}: has folders that are no class of train: Zebras, junk", "; `rename` says whi"),
    (night(classes=["cat", "zebra"]), f"{AT}.classes[1]: 'zebra' has no folder here", ""),
    (night(classes=["cat", "Cat"]), f"{AT}.classes[1]: no class is named 'Cat'", "mean 'cat'?"),
    (night(exclude=["junks"], classes=["cat"]), f"{AT}.exclude[0]: no class or", "mean 'junk'?"),
    (night(rename={"Zebra": "zebra"}, classes=["cat"]), f"{AT}.rename.Zebra: no", "there are Zebr"),
    (night(rename={"Zebras": "zebr"}, classes=["cat"]), f"{AT}.rename.Zebras: no class", CLASSES),
    (night(exclude=["cat", "Zebras", "junk"]), f"{AT}: no class of it is left", ""),
    ({"shifts": {"night": "one"}}, f"{AT}: shares 12 images with train, such as one/cat/0", "png"),
    (
        {"train": "held_out", "test": None, "test_fraction": 0.5},
        ":4: test_fraction: a class needs 3 images of which one becomes a test",
        "cat, hot_dog, zebra",
    ),
]


@pytest.mark.parametrize(("keys", "begin", "part"), WRONG, ids=lambda value: str(value)[:40])
def test_a_misfit_is_told_by_line(root: Path, keys: dict[str, Any], begin: str, part: str) -> None:
    lines = misfits(root, **keys)
    begin = begin.replace("ROOT", str(root))
    assert any(line.startswith(begin) and part in line for line in lines)
    assert len(lines) == (2 if keys.get("test") in ("two", "shifts/night") else 1)


def test_everything_wrong_comes_at_once_in_the_order_of_the_lines(root: Path) -> None:
    (root / "one" / "cat" / "0.png").write_bytes(b"")
    (root / "held_out" / "cat" / "broken.jpg").symlink_to(root / "nowhere")
    (root / "one" / "empty").mkdir()
    lines = misfits(root, shifts={"x": "nowhere"}, class_names={"catt": "x"})
    assert [line.split(" ")[0] for line in lines] == [":3:", ":3:", ":4:", ":4:", ":5:", ":6:"]
    assert lines[0] == ":3: train: one/cat/0.png is empty"
    assert lines[1].startswith(":3: train: has class folders without images: empty; `exclude`")
    assert lines[3] == ":4: test: held_out/cat/broken.jpg is a link to nothing"
    for index in range(30):
        (root / "one" / "cat" / f"e{index}.png").touch()
    lines = misfits(root)
    assert (len(lines), lines[-1]) == (21, "  and 14 more")


def test_a_domain_cannot_be_held_out(root: Path) -> None:
    held_out = DataConfig(family="mine", test_domain="art")
    refused(r"one of the shifts in mine\.family\.yaml", declare(root).open, held_out)


CLASS = st.sampled_from("abcd")


@given(
    trees=st.lists(st.dictionaries(CLASS, st.integers(1, 3), min_size=1), min_size=1, max_size=2),
    shift=st.dictionaries(st.sampled_from("abcdXYZ"), st.integers(1, 2), min_size=1),
    rename=st.dictionaries(st.sampled_from("aXYZ"), CLASS),
    exclude=st.sets(st.sampled_from("abXY")),
    only=st.none() | st.sets(CLASS, min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_a_shift_has_each_image_once_under_its_class_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory,
    trees: list[dict[str, int]],
    shift: dict[str, int],
    rename: dict[str, str],
    exclude: set[str],
    only: set[str] | None,
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for index, tree in enumerate(trees):
        fill(root, f"train{index}", tree)
    fill(root, "shift", shift)
    rules: dict[str, Any] = {"folders": "shift", "rename": rename}
    rules |= {"exclude": sorted(exclude)} if exclude else {}
    rules |= {"classes": sorted(only)} if only is not None else {}
    train = [f"train{index}" for index in range(len(trees))]
    declared = Declaration.model_validate(
        {"name": "x", "train": train, "test_fraction": 0.5, "shifts": {"s": rules}}
    )
    complaints: list[Route] = []
    reading = Reader(declared, root, lambda route, _: complaints.append(route)).read()
    known = {name for tree in trees for name in tree}
    assert set(reading.classes) == known
    expected: dict[str, int] = {}
    for folder, count in shift.items():
        target = rename.get(folder, folder)
        wanted = target in known and (only is None or target in only)
        if wanted and not {folder, target} & exclude:
            expected[target] = expected.get(target, 0) + count
    listing = reading.splits["shifts/s"]
    assert {name: len(files) for name, files in listing.items()} == expected
    assert list(listing) == sorted(expected)
    if not complaints:  # then nothing was lost silently but what was to be left out
        lost = {folder for folder in shift if rename.get(folder, folder) not in expected}
        assert only is not None or all({name, rename.get(name, name)} & exclude for name in lost)
