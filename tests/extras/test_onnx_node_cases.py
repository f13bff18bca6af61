"""ONNX's own test of every operator goes through `fix`, with its own inputs and with made-up ones."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from workbench.core.errors import ModelError, WorkbenchError
from workbench.onnx_graph.mend import REWRITES, fix
from workbench.onnx_graph.session import open_session, run_session
from workbench.pictures import feeds

EXACT = {rewrite.name for rewrite in REWRITES if rewrite.exact}
RUN, CHANGED = 1384, 315  # of the 1884 cases of ONNX 1.23.2, in ONNX Runtime 1.31.1; and those that can be mended
REFUSED = 30  # 22 whose inputs hold NaN or infinity, 8 without any operator of ONNX's own
REFUSED_MADE_UP = 23  # these 8, 5 that take text, and 10 whose sizes do not follow from the shapes around them


@pytest.fixture(scope="module")
def cases():
    """Model, tolerances and inputs of each case that ONNX Runtime runs on arrays of numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases overflow and divide by zero on purpose
        everything = [(case, own_feeds(case)) for case in load_model_tests(kind="node")]
    found = [(case, pairs) for case, pairs in everything if runs(case.model, pairs)]
    assert len(found) >= RUN
    return found


def own_feeds(case):
    names = [value.name for value in case.model.graph.input]
    return [
        (f"set {number}", dict(zip(names, map(as_array, inputs), strict=False)))
        for number, (inputs, _) in enumerate(case.data_sets)
    ]


def as_array(value):
    """What a case feeds; what is no tensor stays as it is."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def runs(model, pairs):
    """Whether all that goes in is arrays, and all that comes out numbers: no sequences, nor types that NumPy lacks."""
    if not all(isinstance(array, np.ndarray) for _, feed in pairs for array in feed.values()):
        return False
    try:
        session = open_session(model, optimise="none")
        answers = [answer for _, feed in pairs for answer in run_session(session, feed).values()]
    except ModelError:
        return False
    return all(isinstance(answer, np.ndarray) and answer.dtype.kind in "biuf" for answer in answers)


def fixed(case, folder, **options):
    onnx.save(case.model, folder / "in.onnx")
    report = fix(folder / "in.onnx", folder / "out.onnx", progress=False, **options)
    return report, onnx.load(folder / "out.onnx")


def same(answers, others, case, report):
    """To the last bit; within the tolerance of the case where a rewrite calculates."""
    exact = {rewrite.name for rewrite in report.kept} <= EXACT
    rtol, atol = (0, 0) if exact else (case.rtol, case.atol)
    return answers.keys() == others.keys() and all(
        (answer.dtype, answer.shape) == (others[name].dtype, others[name].shape)
        and np.allclose(others[name], answer, rtol, atol, equal_nan=True)
        for name, answer in answers.items()
    )


def test_no_rewrite_changes_an_answer(cases, tmp_path):
    refused, changed, wrong = {}, 0, []
    for case, pairs in cases:
        try:
            report, model = fixed(case, tmp_path, feeds=pairs)
        except WorkbenchError as error:
            refused[case.name] = str(error)
            continue
        changed += bool(report.kept)
        before, after = (open_session(one, optimise="none") for one in (case.model, model))
        if not all(same(run_session(before, feed), run_session(after, feed), case, report) for _, feed in pairs):
            wrong.append(case.name)
    assert not wrong
    assert changed >= CHANGED
    assert len(refused) <= REFUSED, "\n".join(f"{name}: {reason}" for name, reason in refused.items())


def test_inputs_can_be_made_up_for_nearly_all(cases, tmp_path, monkeypatch):
    small = {"noise": np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)}
    monkeypatch.setattr(feeds, "photographs", lambda: small)  # to shrink a photograph to 5 x 5 takes half a second
    refused = {}
    for case, _ in cases:
        try:
            fixed(case, tmp_path)
        except WorkbenchError as error:
            refused[case.name] = str(error)
    assert len(refused) <= REFUSED_MADE_UP, "\n".join(f"{name}: {reason}" for name, reason in refused.items())
