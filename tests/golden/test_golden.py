"""The methods reproduce golden cases, below the folder named by VTPRUNE_GOLDEN or those copied next to this file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.golden import adapters
from vtprune.methods import method_names

ROOT = Path(os.environ.get("VTPRUNE_GOLDEN") or Path(__file__).parent / "data")
CASES = sorted(ROOT.rglob("*.npz"))


def method_of(path: Path) -> str:
    folder = path.parent.name
    return adapters.METHOD_OF_FOLDER.get(folder, folder)


def is_input(method: str, name: str, array: np.ndarray) -> bool:
    if name.startswith("w."):
        return True
    # Single numbers are parameters of a case, but for the few that a method has to come up with.
    parameter = array.ndim == 0 and (method, name) not in adapters.SCALAR_OUTPUTS
    return parameter or name in adapters.INPUTS[method]


def compare(method: str, name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    if np.issubdtype(expected.dtype, np.floating):
        atol, rtol = adapters.ARRAY_TOLERANCE.get((method, name), (adapters.TOLERANCE.get(method, 1e-4), 0.0))
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=name)
    else:
        assert np.issubdtype(actual.dtype, np.integer), f"{name}: {actual.dtype}, expected whole numbers"
        np.testing.assert_array_equal(actual, expected, err_msg=name)


def check(method: str, case: dict[str, np.ndarray]) -> None:
    """Every array of the case that is no input comes out of the adapter as stored."""
    expected = {name: array for name, array in case.items() if not is_input(method, name, array)}
    assert expected, "the case expects nothing"
    out = adapters.outputs(method, case)
    missing = sorted(set(expected) - set(out))
    assert not missing, f"the adapter of {method!r} does not compute {missing}"
    for name, array in expected.items():
        compare(method, name, out[name], array)


def test_cases_exist() -> None:
    assert CASES, f"no golden case below {ROOT}"


@pytest.mark.parametrize("path", CASES, ids=lambda p: str(p.relative_to(ROOT)))
def test_case(path: Path) -> None:
    method = method_of(path)
    if method not in method_names():
        pytest.skip(f"method {method!r} is not registered")
    assert method in adapters.ADAPTERS, f"method {method!r} is registered, but has no adapter for {path.name}"
    with np.load(path) as case:
        check(method, dict(case))


def test_default_folder_covers_every_adapter() -> None:
    folders = {method_of(p) for p in (Path(__file__).parent / "data").rglob("*.npz")}
    assert folders == set(adapters.ADAPTERS)


@pytest.mark.parametrize("method", sorted(adapters.ADAPTERS))
def test_check_sees_a_changed_or_added_output(method: str) -> None:
    """The comparison itself can fail: on one altered number, and on an output that the adapter lacks."""
    path = next(p for p in sorted((Path(__file__).parent / "data").rglob("*.npz")) if method_of(p) == method)
    with np.load(path) as file:
        case = dict(file)
    for name in [n for n, array in case.items() if not is_input(method, n, array)]:
        changed = np.array(case[name])
        changed.flat[0] += 1
        with pytest.raises(AssertionError):
            check(method, case | {name: changed})
    with pytest.raises(AssertionError, match="does not compute"):
        check(method, case | {"unheard_of": np.zeros(1)})
