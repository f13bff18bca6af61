"""Command lines that ask for what cannot be: refused at once, in one sentence, with exit status 2."""

import fault_cases
import pytest

CASES = {
    "an opset of 0": (["convert", "resnet50", "{tmp}/x.onnx", "--opset", "0"], "opset"),
}


@pytest.mark.parametrize(("words", "named"), CASES.values(), ids=CASES)
def test_it_is_refused_by_name_before_the_work(words, named, tmp_path, capsys):
    with fault_cases.untouched(tmp_path):
        status, text = fault_cases.command(capsys, *(word.format(tmp=tmp_path) for word in words))
    assert status == 2
    assert named in text
