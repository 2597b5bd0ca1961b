"""Searches on checkpoints with several sets of weights and another number of classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ssmprune import Policy, create_model
from ssmprune.errors import RunError
from ssmprune.measure.flops import count_flops
from ssmprune.models.configs import with_classes
from ssmprune.models.zoo import find_config
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.cli import app
from ssmprune_search.evaluation.evaluator import ModelEvaluators
from ssmprune_search.evaluation.synthetic import SyntheticEvaluators
from ssmprune_search.report.references import find_smaller_models
from ssmprune_search.results.export import annotate
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.run import launch
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.race import Race
from ssmprune_search.study.records import Owner

CLASSES = 37
MODEL = "vim_tiny_patch16_224"
SPACE = """\
schema: ssmprune.space/1
model: MODEL
ratios: {per: layer, layers: [3], low: 0.5, step: 0.25}
scorer: [l1]
objectives: [top1, flops]
"""


def dense_flops(model: str) -> int:
    return count_flops(with_classes(find_config(model), CLASSES)).flops


def test_a_space_counts_the_classifier_of_the_checkpoint() -> None:
    space = SearchSpace.from_yaml(SPACE.replace("MODEL", "vim_nano"))
    before = space.dense_flops
    bound = space.with_classes(CLASSES)
    assert bound.dense_flops == dense_flops("vim_nano") == before + 64 * (CLASSES - 10)
    assert (space.dense_flops, space.with_classes(None)) == (before, space)
    assert bound.config.num_classes == CLASSES and bound != space
    assert bound.with_classes(10) == space


def with_recorded_classes(run_dir: Path, num_classes: int | None) -> RunDirectory:
    run = RunDirectory.open(run_dir)
    info = run.info
    info["identity"].pop("num_classes", None)
    if num_classes is not None:
        info["identity"]["num_classes"] = num_classes
    run.write_info(info)
    return run


def test_a_run_counts_the_classifier_that_it_records(finished_run: Path) -> None:
    assert with_recorded_classes(finished_run, CLASSES).space.dense_flops == dense_flops("vim_nano")
    old = with_recorded_classes(finished_run, None)
    assert old.space.config == find_config("vim_nano")
    assert Outcome.read(finished_run).members


def test_incumbents_are_compared_by_the_flops_of_the_searched_model(finished_run: Path) -> None:
    run = with_recorded_classes(finished_run, CLASSES)
    study = run.study(Owner("session", 0, "process"))
    study.begin_session("session")
    suggestion = study.ask(1000)
    assert suggestion is not None
    figures = SyntheticEvaluators("vim_nano").open("search", 1)(suggestion.policy)
    race = Race()
    race.show(np.ones(figures.images, bool))
    study.tell(suggestion.trial, replace(figures, top1=100.0), race)
    incumbent = study.race(suggestion.policy).incumbent
    assert incumbent is not None and incumbent.trial == suggestion.trial
    assert incumbent.cost.flops == figures.flops + 64 * (CLASSES - 10)


def test_an_exported_policy_tells_the_weights_that_it_was_searched_with(finished_run: Path) -> None:
    run = with_recorded_classes(finished_run, CLASSES)
    run.write_info(run.info | {"identity": run.info["identity"] | {"checkpoint_key": "model_ema"}})
    outcome = Outcome.read(finished_run)
    provenance = annotate(outcome.members[0], outcome).provenance
    assert provenance is not None
    assert (provenance["checkpoint_key"], provenance["num_classes"]) == ("model_ema", CLASSES)


def test_no_model_of_the_zoo_is_smaller_for_other_classes(finished_run: Path) -> None:
    with_recorded_classes(finished_run, CLASSES)
    found = find_smaller_models(Outcome.read(finished_run))
    assert not found.models and f"the {CLASSES} classes" in found.note


def test_identity_tells_the_weights_of_a_file_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = create_model("vim_nano").state_dict()
    noise = {name: value + 1 for name, value in weights.items()}
    torch.save({"model": noise, "model_ema": weights}, tmp_path / "w.pth")
    setting = ModelEvaluators("vim_nano", tmp_path / "w.pth", "digits", "cpu", ("top1",), 128)
    averaged = replace(setting, checkpoint_key="model_ema")
    assert setting.identity()["checkpoint_key"] == "model"
    assert averaged.identity()["checkpoint_key"] == "model_ema"
    assert averaged.identity()["num_classes"] == 10
    assert torch.equal(averaged.load().cls_token, weights["cls_token"])


class Begun(Exception):
    """Stands for Ray, which starts once a call has passed every check."""


@pytest.mark.parametrize("recorded", [{}, {"checkpoint_key": "model_ema", "num_classes": 10}])
def test_resume_takes_the_weights_that_the_run_records(
    recorded: dict[str, Any], finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object) -> None:
        raise Begun

    monkeypatch.setattr(launch, "running_ray", begin)
    weights = create_model("vim_nano").state_dict()
    path = tmp_path / "w.pth"
    torch.save({"model": weights, "model_ema": weights}, path)
    setting = ModelEvaluators("vim_nano", path, "digits", "cpu", ("top1",), 128)
    identity = {k: v for k, v in setting.identity().items() if k in ("model", "checkpoint", "data")}
    run = RunDirectory.open(finished_run)
    run.write_info(run.info | {"identity": identity | recorded})

    def resume(key: str | None = None) -> None:
        options: dict[str, Any] = {"trials": 40, "resume": True, "progress": False}
        space = finished_run / "space.yaml"
        launch.search(space, finished_run, checkpoint=path, checkpoint_key=key, **options)

    with pytest.raises(Begun):
        resume()
    assert run.info["call"]["checkpoint_key"] == recorded.get("checkpoint_key", "model")
    if recorded:
        with pytest.raises(RunError, match="checkpoint_key changed since"):
            resume("model")


def test_report_refuses_another_key_than_that_of_the_search(finished_run: Path) -> None:
    run = RunDirectory.open(finished_run)
    run.write_info(run.info | {"identity": run.info["identity"] | {"checkpoint_key": "model_ema"}})
    result = call("report", finished_run, "--checkpoint-key", "model")
    assert result.exit_code == 1
    assert "searched with, model_ema, got model" in result.stderr
    assert not (finished_run / "report.html").exists()


@pytest.mark.parametrize(
    ("key", "status", "part"),
    [("ema", 2, "'model' and 'model_ema', got 'ema'"), ("model", 1, "weights must be finite")],
)
def test_search_refuses_what_is_wrong_with_the_key_and_writes_nothing(
    both: Path, tmp_path: Path, key: str, status: int, part: str
) -> None:
    space = write_space(tmp_path)
    out = tmp_path / "run"
    options = ("--checkpoint", both, "--checkpoint-key", key, "--out", out)
    result = call("search", space, *options)
    assert (result.exit_code, result.stdout) == (status, "")
    assert part in result.stderr and "Traceback" not in result.output
    assert not out.exists()


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_space(folder: Path) -> Path:
    path = folder / "space.yaml"
    path.write_text(SPACE.replace("MODEL", MODEL))
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with 37 classes whose `model` is useless, so that nobody takes it unseen."""
    torch.manual_seed(0)
    weights = create_model(MODEL, num_classes=CLASSES).state_dict()
    diverged = {name: torch.full_like(value, torch.nan) for name, value in weights.items()}
    path = tmp_path_factory.mktemp("weights") / "both.pth"
    torch.save({"model": diverged, "model_ema": weights}, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 37 classes of two images."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"class_{label:02}").mkdir()
        for number in range(2):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(root / f"class_{label:02}" / f"{number}.png")
    return root


@pytest.fixture
def succeeds() -> Callable[..., Any]:
    def run(*arguments: object) -> Any:
        result = call(*arguments)
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_on_a_key_and_37_classes_from_start_to_end(
    both: Path, photos: Path, tmp_path: Path, succeeds: Callable[..., Any]
) -> None:
    space, out = write_space(tmp_path), tmp_path / "run"
    common = ("search", space, "--checkpoint", both, "--data", photos, "--out", out)
    key = ("--checkpoint-key", "model_ema")
    said = succeeds(*common, *key, "--workers", 1, "--trials", 2).stderr
    assert said.count(f"{both} has a 37-class head") == 1
    succeeds(*common, "--workers", 1, "--trials", 3, "--resume")

    run, outcome = RunDirectory.open(out), Outcome.read(out)
    config = with_classes(find_config(MODEL), CLASSES)
    assert run.info["call"]["checkpoint_key"] == "model_ema"
    assert run.info["identity"]["num_classes"] == CLASSES
    figures: list[tuple[Policy | None, Measurement]] = [(None, outcome.dense)]
    figures += [(c.policy, c.search) for c in outcome.candidates]
    figures += [(m.policy, m.holdout) for m in outcome.members if m.holdout]
    for policy, found in figures:
        assert found.flops == count_flops(config, policy).flops
        assert found.flops_ratio == found.flops / run.space.dense_flops

    assert "without kept tokens" not in succeeds("report", out).stderr
    policy_path = tmp_path / "policy.yaml"
    succeeds("export", out, "-o", policy_path)
    measured = ("--model", MODEL, "--policy", policy_path, "--checkpoint", both, *key)
    evaluated = json.loads(succeeds("eval", *measured, "--data", photos, "--json").stdout)
    assert (evaluated["checkpoint_key"], evaluated["num_classes"]) == ("model_ema", CLASSES)
    profiled = json.loads(succeeds("profile", *measured, "--batch-size", 1, "--json").stdout)
    assert profiled["flops"] == Policy.load(policy_path).measured["flops"]["policy"]  # type: ignore[index]
    assert profiled["dense_flops"] == outcome.dense.flops
