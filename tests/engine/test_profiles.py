"""Profiles: the default batch, what callers ask for, and every mistake before a build starts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.core.contract import TensorSpec
from workbench.core.errors import InputError
from workbench.engine.plan import parse_profile, profile_text, resolve_profile

PICTURE = {"input": TensorSpec("input", (None, 3, 32, 64), "float32")}
FREE = {"input": TensorSpec("input", (None, 3, None, None), "float32")}
FIXED = {"input": TensorSpec("input", (2, 3), "float32")}
TWO = {"a": TensorSpec("a", (None, 4), "float32"), "b": TensorSpec("b", (None, 5), "float32")}


def test_an_open_batch_gets_1_4_8():
    assert resolve_profile(PICTURE) == {"input": ((1, 3, 32, 64), (4, 3, 32, 64), (8, 3, 32, 64))}
    assert resolve_profile(TWO) == {"a": ((1, 4), (4, 4), (8, 4)), "b": ((1, 5), (4, 5), (8, 5))}


def test_fixed_shapes_need_no_profile():
    assert resolve_profile(FIXED) == {}
    assert resolve_profile(FIXED, shape=(2, 3)) == {}
    assert resolve_profile(FIXED, profile={"input": [(2, 3)] * 3}) == {}
    assert profile_text({}) == "every shape is fixed, no profile is needed"


def test_one_shape_fixes_the_only_input():
    assert resolve_profile(PICTURE, shape=[2, 3, 32, 64]) == {"input": ((2, 3, 32, 64),) * 3}
    assert resolve_profile(FREE, shape=np.array([1, 3, 480, 640])) == {"input": ((1, 3, 480, 640),) * 3}


def test_a_shape_and_a_profile_may_serve_different_inputs():
    found = resolve_profile(TWO, shape={"a": (1, 4)}, profile={"b": ((1, 5), (2, 5), (3, 5))})
    assert found == {"a": ((1, 4),) * 3, "b": ((1, 5), (2, 5), (3, 5))}


@pytest.mark.parametrize(
    ("specs", "arguments", "message"),
    [
        (FREE, {}, r"axis 3 is open; say how large it gets with profile=\{'input'"),
        (PICTURE, {"shape": (1, 3, 32)}, r"min of 'input' is \(1, 3, 32\), expected 4 axes"),
        (PICTURE, {"shape": (1, 4, 32, 64)}, r"is 4 on axis 1, which the network fixes to 3"),
        (PICTURE, {"shape": (0, 3, 32, 64)}, r"is 0 on axis 0, expected 1 or more"),
        (PICTURE, {"shape": (-1, 3, 32, 64)}, r"is -1 on axis 0, expected 1 or more"),
        (PICTURE, {"shape": 4}, r"the shape of 'input' is 4, expected whole numbers"),
        (PICTURE, {"shape": (1.5, 3, 32, 64)}, r"expected whole numbers"),
        (PICTURE, {"shape": (True, 3, 32, 64)}, r"expected whole numbers"),
        (PICTURE, {"shape": "1x3x32x64"}, r"expected whole numbers"),
        (TWO, {"shape": (1, 4)}, r"got one shape for 2 inputs, expected a dict of shapes by name: a, b"),
        (TWO, {"shape": {"c": (1, 4)}}, r"names 'c', expected an input of the network: a, b"),
        (PICTURE, {"profile": {"inputt": [(1, 3, 32, 64)] * 3}}, r"names 'inputt', expected an input .*: input"),
        (PICTURE, {"profile": {"input": [(1, 3, 32, 64)] * 2}}, r"expected three shapes: \(min, opt, max\)"),
        (PICTURE, {"profile": {"input": "abc"}}, r"expected three shapes"),
        (PICTURE, {"profile": [(1, 3, 32, 64)] * 3}, r"got list as the profile, expected a dict"),
        (TWO, {"profile": {"a": [(4, 4), (2, 4), (8, 4)]}}, r"axis 0 of 'a' is min 4, opt 2, max 8; expected min <="),
        (TWO, {"profile": {"a": [(4, 4), (4, 4), (2, 4)]}}, r"expected min <= opt <= max"),
        (TWO, {"shape": {"a": (1, 4)}, "profile": {"a": [(1, 4)] * 3}}, r"'a' has both a shape and a profile"),
    ],
)
def test_a_wrong_profile_is_refused_before_the_build(specs, arguments, message):
    with pytest.raises(InputError, match=message):
        resolve_profile(specs, **arguments)


def test_a_profile_is_read_from_the_command_line():
    assert parse_profile(["a=1x4,2x4,8x4", "b:0=3x5"]) == {"a": ((1, 4), (2, 4), (8, 4)), "b:0": ((3, 5),) * 3}


@pytest.mark.parametrize(
    "word", ["", "a", "a=", "=1x2", "a=1x2,3x4", "a=1x2,3x4,5x6,7x8", "a=1*2", "a=-1x2", "a=1x2,,"]
)
def test_a_word_that_is_no_profile_is_refused(word):
    with pytest.raises(InputError, match="expected name=1x3x224x224,4x3x224x224,8x3x224x224"):
        parse_profile([word])


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(SIZES, SIZES, SIZES)
def test_a_resolved_profile_is_in_order_and_survives_the_command_line(first, second, third):
    rank = min(len(first), len(second), len(third))
    columns = [sorted(sizes) for sizes in zip(first[:rank], second[:rank], third[:rank], strict=True)]
    shapes = tuple(tuple(column[index] for column in columns) for index in range(3))
    specs = {"x": TensorSpec("x", (None,) * rank, "float32")}
    resolved = resolve_profile(specs, profile={"x": shapes})
    assert resolved == {"x": shapes}
    word = "x=" + ",".join("x".join(map(str, shape)) for shape in shapes)
    assert parse_profile([word]) == resolved
