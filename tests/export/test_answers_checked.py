"""`convert` runs what it wrote: a file that is wrong, or that does not load, is an error and not a summary."""

import numpy as np
import onnx
import pytest
from networks import two_input_network
from odd_networks import mixed, require_bfloat16
from onnx import helper, numpy_helper

from workbench.cli.main import main
from workbench.core.errors import ExportError
from workbench.core.packages import load_tensorflow
from workbench.export import conversion
from workbench.export.conversion import convert
from workbench.runners import keras_runner


def spoil_weights(model):
    """The exporter loses a thousandth of one kernel."""
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))


def spoil_operator(model):
    """The exporter writes what no runtime knows."""
    model.graph.node[0].op_type = "Strange"


def add_constant_output(model):
    model.graph.node.append(helper.make_node("Identity", [model.graph.output[0].name], ["more"]))
    model.graph.output.append(helper.make_tensor_value_info("more", 1, [None, None]))


@pytest.fixture
def exporter(monkeypatch):
    """Let what tf2onnx writes be spoilt afterwards."""

    def plant(fault):
        convert_really = conversion.Tf2onnxProcess.convert

        def convert_wrongly(self, frozen, path, **options):
            convert_really(self, frozen, path, **options)
            model = onnx.load(path)
            fault(model)
            onnx.save(model, path)
            return path

        monkeypatch.setattr(conversion.Tf2onnxProcess, "convert", convert_wrongly)

    return plant


def test_the_summary_begins_with_a_verdict(tmp_path):
    text = convert(two_input_network(), tmp_path / "net.onnx", progress=False)
    assert text.startswith(f"written {tmp_path / 'net.onnx'}: PASS: ONNX Runtime")
    assert "what rounding does to this network" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (spoil_weights, "answers differently: FAIL: .* times what rounding does to this network"),
        (spoil_operator, "cannot be used: .*Strange"),
        (add_constant_output, 'answers differently: FAIL: .*"more": the reference has no such output'),
    ],
)
def test_a_wrong_file_is_an_error(tmp_path, exporter, fault, reason):
    exporter(fault)
    with pytest.raises(ExportError, match=reason):
        convert(two_input_network(), tmp_path / "net.onnx", progress=False)


def test_without_the_check_nothing_is_run(tmp_path, exporter):
    exporter(spoil_weights)
    text = convert(two_input_network(), tmp_path / "net.onnx", check=False, progress=False)
    assert "written" in text and "PASS" not in text


def test_the_command_fails_and_has_a_way_to_skip(tmp_path, exporter, capsys):
    two_input_network().save(tmp_path / "net.keras")
    exporter(spoil_weights)
    words = ["convert", str(tmp_path / "net.keras"), str(tmp_path / "net.onnx")]
    assert main(words) == 1
    assert "answers differently" in capsys.readouterr().err
    assert main([*words, "--no-check"]) == 0


def test_the_comparison_is_made_on_the_feeds_that_were_given(tmp_path, exporter):
    """A kernel that is wrong shows on no feed of zeros."""
    exporter(spoil_weights)
    zeros = {name: np.zeros((1, 8), np.float32) for name in ("left", "right")}
    text = convert(two_input_network(), tmp_path / "net.onnx", feeds=[("nothing", zeros)], progress=False)
    assert "INCONCLUSIVE" in text


def test_where_the_source_does_not_run_on_this_machine_that_is_said(tmp_path, monkeypatch):
    """As a network in bfloat16 on a processor without AVX-512."""

    def refuse(*given):
        raise load_tensorflow().errors.AbortedError(None, None, "could not create a primitive")

    monkeypatch.setattr(keras_runner, "flat_call", lambda model: refuse)
    text = convert(two_input_network(), tmp_path / "net.onnx", progress=False)
    assert "not compared with its source" in text.splitlines()[0] and "could not create a primitive" in text


def test_a_network_in_bfloat16_is_judged_by_the_rounding_of_bfloat16(tmp_path):
    require_bfloat16()
    with pytest.warns(UserWarning, match="computes in float32"):
        text = convert(mixed("mixed_bfloat16"), tmp_path / "net.onnx", progress=False)
    assert "PASS" in text
