"""What importing the package brings along, in processes of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def told(code: str) -> str:
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_policies_their_flops_and_search_workers_do_without_torch():
    code = (
        "import sys, ssmprune, ssmprune_search.workers.cluster;"
        "from ssmprune_search.evaluation.synthetic import SyntheticEvaluators;"
        "from ssmprune import Policy;"
        "policy = Policy(model='vim_nano', stages=[{'layer': 2, 'keep_ratio': 0.5}]);"
        "SyntheticEvaluators('vim_nano').open('search', 1)(policy);"
        "print({'torch', 'timm'} & sys.modules.keys() or 'neither')"
    )
    assert told(code) == "neither"


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import timm.data, ssmprune",
        "import ssmprune; from timm.models import list_models; import timm",
        "from ssmprune import create_model; import timm",
    ],
)
def test_models_are_in_timms_registry_in_any_order_of_imports(imports):
    assert told(f"{imports}; print(timm.is_model('vim_nano'))") == "True"


def test_public_names_are_there_and_others_are_refused():
    code = (
        "import ssmprune; print(all(hasattr(ssmprune, name) for name in ssmprune.__all__),"
        " set(ssmprune.__all__) <= set(dir(ssmprune)), hasattr(ssmprune, 'nothing'))"
    )
    assert told(code) == "True True False"


def test_what_is_left_of_a_search_starts_no_ray_of_its_own():
    code = (
        "import ssmprune_search.workers.cluster, ray\n"
        "try: ray.put(0)\n"
        "except Exception as fault: print(type(fault).__name__, ray.is_initialized())"
    )
    assert told(code) == "RaySystemError False"
