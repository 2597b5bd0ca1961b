"""Which files of a folder are images of which class and split."""

import logging
import os
import shutil

import numpy as np
import pytest

from ssmprune.data import check_images, open_images, open_stream
from ssmprune.errors import DataError

SHAPE = {"image_size": (32, 32), "channels": 3}
NAMES = ("n000", "n001", "n002")


def opened(root, split="search"):
    return open_images(str(root), split, **SHAPE)


def count(root):
    """Images of each class in search and holdout together, and the class names."""
    sets = [opened(root, split) for split in ("search", "holdout")]
    labels = np.concatenate([labels for part in sets for _, labels in part.loader])
    assert sets[0].classes == sets[1].classes
    return sets[0].classes, np.bincount(labels, minlength=len(sets[0].classes)).tolist()


@pytest.fixture
def base(tmp_path, write_images):
    for i, name in enumerate(NAMES):
        write_images(tmp_path / "base" / name, 4, first=10 * i)
    return tmp_path / "base"


@pytest.mark.parametrize(
    "litter",
    [
        ".ipynb_checkpoints",
        ".cache",
        "__MACOSX",
        "@eaDir",
        "lost+found",
        "$RECYCLE.BIN",
        "System Volume Information",
    ],
)
def test_litter_is_neither_a_class_nor_a_place_of_images(base, litter, write_images):
    write_images(base / litter / "n001", 3, first=90)
    write_images(base / litter, 3, first=90)
    write_images(base / "n001" / litter, 3, first=90)
    assert count(base) == (NAMES, [4, 4, 4])


def test_litter_beside_the_splits_is_no_class(tmp_path, write_images):
    for place in ("train", "val", "val/__MACOSX", "__MACOSX"):
        write_images(tmp_path / place / "ant", 2)
        write_images(tmp_path / place / "bee", 2, first=10)
    assert count(tmp_path) == (("ant", "bee"), [2, 2])


def test_files_that_systems_leave_beside_images_are_ignored(base):
    for name in ("._0.png", ".hidden.jpg", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (base / "n000" / name).write_bytes(b"no image")
        (base / name).write_bytes(b"no image")
    assert count(base) == (NAMES, [4, 4, 4])
    check_images(str(base))


def test_classes_without_images_are_told_and_keep_their_labels(base, caplog):
    (base / "empty").mkdir()
    with caplog.at_level(logging.INFO, "ssmprune"):
        assert count(base) == (("empty", *NAMES), [0, 4, 4, 4])
    assert "1 of the 4 class folders" in caplog.text and caplog.text.rstrip().endswith(": empty.")


def test_a_class_of_which_one_split_has_no_images_is_none_to_tell(tmp_path, write_images, caplog):
    write_images(tmp_path / "search" / "bee", 2)
    (tmp_path / "search" / "ant").mkdir()
    write_images(tmp_path / "holdout" / "ant", 3, first=10)
    with caplog.at_level(logging.INFO, "ssmprune"):
        assert count(tmp_path) == (("ant", "bee"), [3, 2])
    assert not caplog.text


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        (("train", "val"), {"train": 8, "search": 4, "holdout": 4}),
        (("training", "validation"), {"train": 8, "search": 4, "holdout": 4}),
        (("Training", "Test"), {"train": 8, "search": 4, "holdout": 4}),
        (("train", "valid", "test"), {"train": 8, "search": 8, "holdout": 8}),
        (("val", "test"), {"search": 8, "holdout": 8}),
        (("val",), {"search": 4, "holdout": 4}),
        (("val", "holdout"), {"search": 8, "holdout": 8}),
        (("search", "test"), {"search": 8, "holdout": 8}),
        (("train", "search", "holdout", "test"), {"train": 8, "search": 8, "holdout": 8}),
    ],
)
def test_known_names_of_splits_are_taken_as_such(tmp_path, write_images, folders, sizes):
    for i, name in enumerate(folders):
        write_images(tmp_path / name / "ant", 4, first=20 * i)
        write_images(tmp_path / name / "bee", 4, first=20 * i + 10)
    sets = {split: opened(tmp_path, split) for split in sizes}
    assert {split: len(found) for split, found in sets.items()} == sizes
    assert all(found.classes == ("ant", "bee") for found in sets.values())


def test_the_test_folder_is_the_holdout_where_there_is_val(tmp_path, write_images, gather):
    write_images(tmp_path / "val" / "ant", 2)
    write_images(tmp_path / "test" / "ant", 2, first=10)
    given = {split: gather(opened(tmp_path, split))[0] for split in ("search", "holdout")}
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "test", alone / "test" / "holdout")
    shutil.move(alone / "test" / "holdout" / "ant", alone / "holdout" / "ant")
    alone_images = gather(open_images(str(alone), "holdout", **SHAPE))[0]
    assert sorted(given["holdout"].sum((1, 2, 3)).tolist()) == pytest.approx(
        sorted(alone_images.sum((1, 2, 3)).tolist())
    )


def test_test_images_without_labels_are_left_out_and_told(tmp_path, write_images, caplog):
    write_images(tmp_path / "val" / "ant", 4)
    write_images(tmp_path / "test", 3, first=10)
    with caplog.at_level(logging.INFO, "ssmprune"):
        assert len(opened(tmp_path)) == len(opened(tmp_path, "holdout")) == 2
    assert "test is left out: it has no class folders" in caplog.text


def test_a_class_may_have_the_name_of_a_split(tmp_path, write_images):
    for i, name in enumerate(("bus", "train")):
        write_images(tmp_path / name, 4, first=10 * i)
    assert count(tmp_path) == (("bus", "train"), [4, 4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            ("images",),
            r"holds images alone, .*n000, n001, n002 are in .*/images; give .*/images\.$",
        ),
        (("data", "images"), r"holds data alone, .*; give .*/data/images\.$"),
        (("val", "images"), r"/val holds images alone, .*; move its folders to .*/val\.$"),
    ],
)
def test_classes_one_level_too_deep_are_refused_with_the_folder_to_give(
    base, tmp_path, make, message
):
    root = tmp_path / "root"
    shutil.copytree(base, root.joinpath(*make))
    with pytest.raises(DataError, match=message):
        opened(root)


def test_splits_one_level_too_deep_are_refused_with_the_folder_to_give(tmp_path, write_images):
    for name in ("train", "val"):
        write_images(tmp_path / "root" / "birds" / name / "ant", 2)
    with pytest.raises(DataError, match=r"train, val are in .*; give .*/root/birds\.$"):
        opened(tmp_path / "root")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("val", "validation"), "one folder, but .* holds val and validation"),
        (("search",), "holdout images .* in a folder named holdout or test, .* only search"),
        (("train",), "named holdout or test, but there is only train"),
    ],
)
def test_splits_that_are_missing_or_double_are_refused(tmp_path, write_images, folders, message):
    for name in folders:
        write_images(tmp_path / name / "ant", 2)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "holdout")


def test_a_split_without_a_sibling_can_be_opened_by_itself(tmp_path, write_images):
    write_images(tmp_path / "search" / "ant", 2)
    assert len(opened(tmp_path, "search")) == 2


@pytest.mark.parametrize("target", ["..", "../..", ".", "../n000", "../n002/inner", "inner"])
def test_links_within_a_folder_change_nothing(base, write_images, target):
    write_images(base / "n002" / "inner", 2, first=90)
    write_images(base.parent / "not_ours", 5, first=95)
    before = {split: opened(base, split).fingerprint for split in ("search", "holdout")}
    assert count(base) == (NAMES, [4, 4, 6])
    (base / "n001" / "loop").symlink_to(target)
    (base / "n002" / "loop").symlink_to(target)
    assert count(base) == (NAMES, [4, 4, 6])
    assert {split: opened(base, split).fingerprint for split in before} == before


def test_links_to_folders_elsewhere_are_followed_once(base, tmp_path, write_images):
    write_images(tmp_path / "pool" / "deep", 3, first=90)
    (tmp_path / "pool" / "back").symlink_to(base)
    (base / "n002" / "one").symlink_to(tmp_path / "pool")
    (base / "n002" / "two").symlink_to(tmp_path / "pool")
    assert count(base) == (NAMES, [4, 4, 7])


def test_no_file_is_in_both_halves_when_it_is_linked_twice(base):
    for i in range(4):
        (base / "n000" / f"again{i}.png").symlink_to(base / "n000" / f"{i}.png")
    assert count(base) == (NAMES, [4, 4, 4])


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("n003", "n000", r"n000 and .*n003 are the same folder"),
        ("n001/again.png", "n000/0.png", r"one class and one split, but .*n000/0\.png is in"),
    ],
)
def test_images_of_two_classes_are_refused(base, link, target, message):
    (base / link).symlink_to(base / target)
    with pytest.raises(DataError, match=message):
        opened(base)


@pytest.mark.parametrize(
    ("link", "message"),
    [("holdout/ant", "are the same folder"), ("holdout/bee/0.png", "one class and one split")],
)
@pytest.mark.parametrize("split", ["search", "holdout"])
def test_images_of_two_splits_are_refused(tmp_path, write_images, split, link, message):
    for i, name in enumerate(("search/ant", "search/bee", "holdout/bee")):
        write_images(tmp_path / name, 3, first=10 * i)
    target = link.replace("holdout", "search").replace("bee/0", "bee/10")
    (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, split)


@pytest.mark.parametrize("closed", ["", "n001", "n001/inner"])
def test_a_folder_that_cannot_be_read_is_named(base, write_images, monkeypatch, closed):
    write_images(base / "n001" / "inner", 1, first=90)
    scandir = os.scandir

    def refusing(path="."):
        if os.fspath(path) == os.path.join(base, closed).rstrip("/"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    for open_it in (lambda: opened(base), lambda: check_images(str(base))):
        with pytest.raises(DataError, match=rf"{closed} is not \(Permission denied\); give the"):
            open_it()


def test_names_that_are_not_utf8_are_taken(base, write_images, gather):
    strange = os.fsdecode(os.fsencode(base) + b"/n\xff")
    os.mkdir(strange)
    for i in range(4):
        os.link(base / "n000" / f"{i}.png", os.fsencode(strange) + b"/\xe4%d.png" % i)
    for i in range(4):
        (base / "n000" / f"{i}.png").unlink()
    found = opened(base)
    assert found.classes == (*NAMES, "n\\xff")
    assert gather(found)[0].shape[0] == 6
    assert found.fingerprint == opened(base).fingerprint
    found.classes[3].encode()


def test_what_is_no_file_is_told_with_the_others(base):
    (base / "n000" / "x.png").symlink_to("nowhere.png")
    (base / "n001" / "y.png").symlink_to("y.png")
    os.mkfifo(base / "n002" / "z.png")
    message = r"readable, but \d of \d+ are not; .*[xyz]\.png"
    for open_it in (lambda: count(base), lambda: check_images(str(base))):
        with pytest.raises(DataError, match=message):
            open_it()


def test_a_stream_tells_of_files_that_are_not_there(tmp_path, write_images):
    write_images(tmp_path / "train" / "ant", 2)
    (tmp_path / "train" / "ant" / "x.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"1 of 3 are not; .*x\.png\.$"):
        open_stream(str(tmp_path), **SHAPE, batch_size=2)


def test_nested_folders_belong_to_their_class(tmp_path, write_images):
    write_images(tmp_path / "ant" / "left", 2)
    write_images(tmp_path / "ant" / "right", 2, first=10)
    write_images(tmp_path / "bee", 2, first=20)
    assert count(tmp_path) == (("ant", "bee"), [4, 2])
