import importlib.util
import subprocess
import sys

import pytest

import hywu_core


def test_importing_the_package_loads_nothing():
    code = "import sys, hywu_core; assert not {'torch', 'transformers', 'diffusers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_public_name_has_a_home():
    assert set(hywu_core._HOME_OF) == set(hywu_core.__all__)
    assert set(hywu_core.__all__) <= set(dir(hywu_core))


@pytest.mark.parametrize("name", hywu_core.__all__)
def test_public_names_load_on_first_use(name):
    if importlib.util.find_spec(hywu_core._HOME_OF[name], "hywu_core") is None:
        pytest.skip(f"{hywu_core._HOME_OF[name]} is not built yet")
    assert getattr(hywu_core, name).__name__ == name


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        hywu_core.Nonsense  # noqa: B018
