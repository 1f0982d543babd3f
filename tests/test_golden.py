"""Our operations against arrays computed by the published code.

Every `*.npz` of the folders `$TFSEG_GOLDEN_DIR` (separated by ':') must be known to one of the case
modules below or be listed, as `<system>/<family>`, in tests/golden/pending.txt; a file that
neither knows is a failing test. Cases that need a library which is not installed are expected
failures, named in the output. The default, tests/golden, holds a part of the arrays that .ci/run
compares where it finds them.
"""

import os
import pathlib

import pytest

from tests.golden_cases import (
    class_maps,
    lpl_data,
    lpl_eval,
    lpl_losses,
    lpl_model,
    pseudoseg_data,
    pseudoseg_eval,
    pseudoseg_losses,
    pseudoseg_method,
    pseudoseg_model,
    slrnet_eval,
    slrnet_method,
    slrnet_model,
    slrnet_ops,
    slrnet_training,
    strict_method,
    strict_model,
    unimatch_data,
    unimatch_eval,
    unimatch_losses,
    unimatch_method,
    unimatch_network,
    unimatch_v2_method,
    zero_label_data,
    zero_label_metrics,
    zs3_method,
    zs3_ops,
)
from tfseg.errors import UserError

HERE = pathlib.Path(__file__).parent / "golden"
GOLDEN_DIRS = [
    pathlib.Path(folder)
    for folder in os.environ.get("TFSEG_GOLDEN_DIR", str(HERE)).split(os.pathsep)
]
CASES = {
    **class_maps.CASES,
    **lpl_data.CASES,
    **lpl_eval.CASES,
    **lpl_losses.CASES,
    **lpl_model.CASES,
    **pseudoseg_data.CASES,
    **pseudoseg_eval.CASES,
    **pseudoseg_losses.CASES,
    **pseudoseg_method.CASES,
    **pseudoseg_model.CASES,
    **slrnet_method.CASES,
    **slrnet_eval.CASES,
    **slrnet_model.CASES,
    **slrnet_ops.CASES,
    **slrnet_training.CASES,
    **strict_method.CASES,
    **strict_model.CASES,
    **unimatch_data.CASES,
    **unimatch_eval.CASES,
    **unimatch_losses.CASES,
    **unimatch_method.CASES,
    **unimatch_network.CASES,
    **unimatch_v2_method.CASES,
    **zero_label_data.CASES,
    **zero_label_metrics.CASES,
    **zs3_method.CASES,
    **zs3_ops.CASES,
}
# Of tests/golden: half a minute on Xception-65; tests/test_predict.py has it on a small network.
NIGHTLY = {"pseudoseg/multi_scale_flip"}
# Families that need an optional library: quantity -> why it cannot be computed here, or None.
UNAVAILABLE = {**lpl_eval.UNAVAILABLE, **slrnet_ops.UNAVAILABLE}


def _pending() -> list[str]:
    lines = (HERE / "pending.txt").read_text().splitlines()
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]


def _family(path: pathlib.Path, families) -> str | None:
    """Returns the longest family whose name starts the file's name."""
    key = f"{path.parent.name}/{path.stem}"
    matching = [f for f in families if key == f or key.startswith(f + "_")]
    return max(matching, key=len, default=None)


def _files() -> list[pathlib.Path]:
    return sorted(path for folder in GOLDEN_DIRS for path in folder.glob("*/*.npz"))


def _collect():
    for path in _files():
        family = _family(path, CASES)
        name = f"{path.parent.name}/{path.stem}"
        if family is not None:
            quantities, _ = CASES[family]
            for quantity in quantities(str(path)):
                reason = UNAVAILABLE.get(family, lambda _: None)(quantity)
                marks = []
                if reason:
                    # Only the error that says how to install the library is accepted.
                    marks = [pytest.mark.xfail(reason=reason, raises=UserError, strict=True)]
                if family in NIGHTLY and HERE in path.parents:
                    marks.append(pytest.mark.nightly)
                yield pytest.param(
                    path,
                    family,
                    quantity,
                    id=f"{name}:{quantity}",
                    marks=marks,
                )
        elif _family(path, _pending()) is None:
            yield pytest.param(path, None, None, id=f"{name}:unknown")


@pytest.mark.parametrize("path, family, quantity", _collect())
def test_golden(path, family, quantity):
    assert family is not None, f"no case module knows {path}, and pending.txt does not list it"
    CASES[family][1](str(path), quantity)


def test_pending_families_are_reported(capsys):
    files = _files()
    owed = [p for p in files if _family(p, CASES) is None and _family(p, _pending())]
    with capsys.disabled():
        for case in _collect():
            for mark in case.marks:
                if mark.name == "xfail":
                    print(f"\nnot compared: {case.id}: {mark.kwargs['reason']}", end="")
        if owed:
            print(f"\npending: {len(owed)} golden files of later issues (tests/golden/pending.txt)")
    for folder in GOLDEN_DIRS:
        assert any(folder in path.parents for path in files), f"no golden files in {folder}"


def test_no_family_is_both_known_and_pending():
    assert not set(CASES) & set(_pending())
