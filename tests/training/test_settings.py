import pytest

from ssmprune.errors import RecipeError, UsageError
from ssmprune.training import TrainSettings, load_recipe, shipped_recipes

SHORT = TrainSettings(steps=100, lr=1e-3)


def test_changes_tell_every_fault_at_once():
    with pytest.raises(UsageError) as caught:
        SHORT.changed(steps=0, lr=-1.0, curriculum=2.0, optimizer="adamv")
    told = str(caught.value)
    for part in ("steps must be", "lr must be greater than 0, got -1.0", "curriculum", "mean adam"):
        assert part in told
    assert len(told.splitlines()) == 4


def test_settings_refuse_nan():
    for fault in ({"lr": float("nan")}, {"clip": float("inf")}):
        with pytest.raises(UsageError, match=r"must be (greater|a finite)"):
            SHORT.changed(**fault)


def test_steps_and_epochs_displace_each_other():
    assert SHORT.changed(epochs=2).total_steps(images=96) == 3
    assert SHORT.changed(epochs=0.001).total_steps(images=96) == 1
    assert SHORT.changed(epochs=2).changed(steps=7).total_steps(images=96) == 7
    with pytest.raises(ValueError, match="either steps or epochs, got both"):
        TrainSettings(steps=1, epochs=1, lr=1e-3)


def test_published_recipes_have_their_numbers():
    top_vim, rmeeto = load_recipe("top_vim"), load_recipe("rmeeto")
    assert (top_vim.epochs, top_vim.lr, top_vim.weight_decay, top_vim.amp) == (
        30,
        5e-6,
        1e-8,
        False,
    )
    assert (rmeeto.epochs, rmeeto.lr, rmeeto.distill) == (3, 2e-5, 0.5)
    assert shipped_recipes() == ["fine_tune", "rmeeto", "scratch", "top_vim"]


def test_fine_tuning_takes_a_tenth_of_the_steps():
    assert load_recipe("fine_tune").steps * 10 == load_recipe("scratch").steps


def test_a_recipe_file_is_read_with_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("schema: ssmprune.recipe/1\nepochs: 3\nlr: 2e-5\nbetas: [0.9, 0.95]\n")
    recipe = load_recipe(path)
    assert (recipe.epochs, recipe.lr, recipe.betas) == (3, 2e-5, (0.9, 0.95))


def test_a_number_of_a_recipe_in_quotes_is_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 3\nlr: '2e-5'\n")
    with pytest.raises(RecipeError, match="lr must be a valid number, got '2e-5'"):
        load_recipe(path)


def test_a_recipe_names_all_its_faults_with_their_lines(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 3\nlr: fast\nmixupp: 0.8\nema: 2\nschedule: cosin\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    told = str(caught.value)
    for part in ("line 2", "unknown key 'mixupp' at", "did you mean 'mixup'?", "ema", "line 5"):
        assert part in told
    assert len(told.splitlines()) == 4


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("top_vin", UsageError, "did you mean top_vim"),
        ("no/such/recipe.yaml", RecipeError, "there is none"),
    ],
)
def test_a_recipe_that_is_not_there_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        load_recipe(name)


def test_a_recipe_without_a_length_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 1e-3\n")
    with pytest.raises(RecipeError, match="either steps or epochs, got neither"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2**63),
        ("batch_size", 10**14),
        ("steps", 10**12),
        ("epochs", 1e300),
        ("epochs", float("nan")),
        ("lr", float("inf")),
    ],
)
def test_a_number_that_nothing_can_take_is_refused_with_its_range(name, value):
    with pytest.raises(UsageError, match=f"{name} must be (less than or equal to|a finite)"):
        load_recipe("scratch").changed(**{name: value})
