import os

import pytest
import torch

from ssmprune.errors import RunError
from ssmprune.training.directory import TrainDirectory

CONFIG = {"model": "m", "steps": 10}


def test_claim_makes_the_directory_and_frees_it_at_the_end(tmp_path):
    directory = TrainDirectory(tmp_path / "a" / "b")
    for _ in range(2):
        with directory.claim(CONFIG):
            assert directory.path.is_dir()


def test_claim_refuses_a_directory_in_use_by_another_run(tmp_path):
    with (
        TrainDirectory(tmp_path).claim(CONFIG),
        pytest.raises(RunError, match="by one training run at a time, but process"),
        TrainDirectory(tmp_path).claim(CONFIG),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_claim_refuses_the_run_of_other_settings_and_names_them(tmp_path):
    directory = TrainDirectory(tmp_path)
    directory.write_record({"config": CONFIG})
    message = r"steps is 10 there and 20 here\. Name another directory"
    with (
        pytest.raises(RunError, match=message),
        directory.claim(CONFIG | {"steps": 20}),
    ):
        pass
    with directory.claim(CONFIG):
        pass


def test_claim_refuses_a_directory_with_other_files_and_a_file(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for path, message in (
        (tmp_path, "holds other files"),
        (tmp_path / "thesis.tex", "must be a directory"),
    ):
        with pytest.raises(RunError, match=message), TrainDirectory(path).claim(CONFIG):
            pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "ssmprune.run/1"}', "\x00"])
def test_claim_refuses_a_damaged_record(tmp_path, text):
    (tmp_path / "train.json").write_text(text)
    with (
        pytest.raises(RunError, match=r"schema ssmprune\.train/1"),
        TrainDirectory(tmp_path).claim(CONFIG),
    ):
        pass


def test_a_damaged_state_is_refused(tmp_path):
    directory = TrainDirectory(tmp_path)
    assert directory.read_state() is None
    directory.write_state({"step": 3, "weights": torch.arange(1000)})
    whole = (tmp_path / "last.ckpt").read_bytes()
    for damaged in (whole[:-100], b"", b"no checkpoint"):
        (tmp_path / "last.ckpt").write_bytes(damaged)
        with pytest.raises(RunError, match="remove it to begin anew"):
            directory.read_state()


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path):
    directory = TrainDirectory(tmp_path)
    directory.write_state({"step": 3})
    with pytest.raises(AttributeError):
        directory.write_state({"step": 4, "unpicklable": lambda: None})
    assert directory.read_state() == {"step": 3}


def test_log_is_cut_at_the_step_from_which_a_run_goes_on(tmp_path):
    directory = TrainDirectory(tmp_path)
    assert directory.read_log(until=10) == []
    rows = [
        {"step": str(s), "seconds": "1", "lr": "1", "loss": "2", "search_top1": ""} for s in (5, 10)
    ]
    directory.write_log(rows)
    assert directory.read_log(until=10) == rows
    assert directory.read_log(until=9) == rows[:1]
