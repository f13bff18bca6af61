"""PyTorch networks through today's exporter; the oracle is PyTorch, run here without the workbench."""

import io
import json
import pickle
import re
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from extras import torch_networks as networks

from workbench.cli import main as cli
from workbench.core.errors import ExportError, FeedError, InputError, ModelError, OutputError
from workbench.engine.build import build_engine
from workbench.export import torch_model
from workbench.export.torch_model import torch_to_onnx
from workbench.models.files import open_model
from workbench.models.torch_file import open_torch_file
from workbench.parity.stages import verify
from workbench.runners.backends import open_runner
from workbench.runners.torch_runner import TorchRunner

NAMES = ("residual", "unet", "transformer", "lstm", "many ends", "resnet50")
BATCH = torch.export.Dim("n", min=1)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Each network, exported when a test first asks for it."""
    folder, made = tmp_path_factory.mktemp("torch"), {}

    def export(name):
        if name not in made:
            model, example = networks.make(name)
            made[name] = model, torch_to_onnx(model, example, folder / f"{name}.onnx", progress=False)
        return made[name]

    return export


def fresh_inputs(name, batch):
    torch.manual_seed(batch)
    _, example = networks.make(name)
    torch.manual_seed(batch + 1)
    shapes = [(batch, *tensor.shape[1:]) for tensor in example]
    integers = [tensor.dtype == torch.int64 for tensor in example]
    return [
        torch.randint(0, 11, shape) if whole else torch.randn(shape)
        for shape, whole in zip(shapes, integers, strict=True)
    ]


def answers_of(model, inputs):
    with torch.no_grad():
        answer = model(*inputs)
    return [tensor.numpy() for tensor in (answer.values() if isinstance(answer, dict) else [answer])]


@pytest.mark.parametrize("name", NAMES)
def test_the_file_answers_like_pytorch_at_any_batch(name, exports):
    model, export = exports(name)
    session = onnxruntime.InferenceSession(export.path)
    for batch in (1, 5):
        inputs = fresh_inputs(name, batch)
        feed = {end.name: tensor.numpy() for end, tensor in zip(session.get_inputs(), inputs, strict=True)}
        for expected, got in zip(answers_of(model, inputs), session.run(None, feed), strict=True):
            assert got.shape == expected.shape
            # float32 sums in another order: measured below 1e-6 of the range; a wrong layer gives 1e-2 and more
            assert np.abs(got - expected).max() < 1e-5 * np.ptp(expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_report_is_a_pass_and_the_batch_is_open_by_name(name, exports):
    _, export = exports(name)
    assert export.passed, export.to_text()
    assert all(spec.shape[0] is None for spec in (*export.summary.inputs, *export.summary.outputs))
    graph = onnx.load(export.path).graph
    firsts = {end.type.tensor_type.shape.dim[0].dim_param for end in (*graph.input, *graph.output)}
    assert firsts == {"batch"}


@pytest.mark.parametrize("name", NAMES)
def test_the_real_builder_takes_the_file(name, exports):
    _, export = exports(name)
    plan = build_engine(export.path, targets=["sm89"], flavour="tensorrt_rtx", progress=False, cache=False)
    assert plan.manifest.targets == ("sm89",)
    assert set(plan.manifest.profiles[0]) == {spec.name for spec in export.summary.inputs}


def test_resnet50_is_53_convolutions_and_no_batch_normalisation(exports):
    _, export = exports("resnet50")
    # He et al., table 1: 1 + 3 * 16 convolutions, and 4 in the shortcuts; batch normalisation is folded into them
    assert export.summary.operators["Conv"] == 53
    assert "BatchNormalization" not in export.summary.operators


def test_a_single_input_and_output_are_named_so(exports):
    _, export = exports("residual")
    assert [spec.name for spec in export.summary.inputs] == ["input"]
    assert [spec.name for spec in export.summary.outputs] == ["output"]
    text = export.to_text()
    assert "float32 (batch, 3, 32, 32)" in text and "onnxslim left" in text and "PASS: ONNX Runtime" in text


def test_several_inputs_keep_their_arguments_names_and_a_dict_keeps_its_keys(exports):
    _, export = exports("many ends")
    assert [spec.name for spec in export.summary.inputs] == ["picture", "facts", "words"]
    assert [spec.name for spec in export.summary.outputs] == ["logits", "features"]
    assert export.summary.inputs[2].dtype == "int64"


def test_onnxslim_removes_nodes_and_the_count_before_is_told(exports):
    _, export = exports("lstm")
    assert sum(export.summary.operators.values()) < export.exported_nodes


def test_no_line_or_path_of_the_source_gets_into_the_file(exports):
    _, export = exports("residual")
    data = export.path.read_bytes()
    assert b".py" not in data and b"return self." not in data


def test_a_tuple_of_outputs_gets_numbers_and_a_dict_of_arguments_their_names(tmp_path):
    class Pair(torch.nn.Module):
        def forward(self, left, right):
            return left - right, (left * right, [left])

    example = {"right": np.ones((2, 4), np.float32), "left": torch.arange(8.0).reshape(2, 4)}
    export = torch_to_onnx(Pair(), example, tmp_path / "pair.onnx", progress=False)
    assert [spec.name for spec in export.summary.inputs] == ["right", "left"]
    assert [spec.name for spec in export.summary.outputs] == ["output_0", "output_1_0", "output_1_1"]
    feed = {"left": np.full((1, 4), 7, np.float32), "right": np.full((1, 4), 2, np.float32)}
    answers = onnxruntime.InferenceSession(export.path).run(None, feed)
    assert [float(answer[0, 0]) for answer in answers] == [5, 14, 7]


def test_an_output_with_the_name_of_an_input_gets_another(tmp_path):
    class Same(torch.nn.Module):
        def forward(self, x, y):
            return {"x": x + y, "sum": y * 2}

    export = torch_to_onnx(Same(), (torch.ones(2, 3), torch.ones(2, 3)), tmp_path / "same.onnx", progress=False)
    assert [spec.name for spec in export.summary.outputs] == ["x_output", "sum"]


def test_a_model_in_training_mode_is_exported_for_inference_and_left_as_it_was(tmp_path):
    model, example = networks.make("residual")
    expected = answers_of(model, example)[0]
    model.train()
    model.body[1].norms[0].eval()  # one frozen part, as in fine-tuning
    before = [part.training for part in model.modules()]
    statistics = model.body[1].norms[1].running_mean.clone()
    export = torch_to_onnx(model, example, tmp_path / "m.onnx", progress=False)
    assert [part.training for part in model.modules()] == before
    assert torch.equal(model.body[1].norms[1].running_mean, statistics)
    got = onnxruntime.InferenceSession(export.path).run(None, {"input": example[0].numpy()})[0]
    assert np.abs(got - expected).max() < 1e-5 * np.ptp(expected)  # as above; dropout alone would give 1e-1


def test_a_model_is_left_in_training_mode_when_the_export_fails(tmp_path):
    model = networks.Decides().train()
    with pytest.raises(ExportError):
        torch_to_onnx(model, torch.ones(2, 4), tmp_path / "m.onnx", progress=False)
    assert model.training and model.layer.training


def test_a_network_that_writes_into_its_input_leaves_the_example_alone(tmp_path):
    example = torch.randn(2, 4)
    kept = example.clone()
    assert torch_to_onnx(networks.WritesIntoItsInput(), example, tmp_path / "m.onnx", progress=False).passed
    assert torch.equal(example, kept)


def test_an_example_of_one_leaves_the_batch_open(tmp_path):
    model, example = networks.make("residual")
    # `torch.export` takes a size of 1 for a constant, so the exporter sees two
    export = torch_to_onnx(model, example[0][:1], tmp_path / "m.onnx", progress=False)
    assert export.passed and export.summary.inputs[0].shape == (None, 3, 32, 32)


def test_a_fixed_batch_stays_fixed_when_asked_for(tmp_path):
    model, example = networks.make("residual")
    export = torch_to_onnx(model, example, tmp_path / "m.onnx", dynamic_batch=False, progress=False)
    assert export.summary.inputs[0].shape == (2, 3, 32, 32)
    assert export.passed


def test_the_opset_asked_for_is_the_one_written(tmp_path):
    model, example = networks.make("residual")
    assert torch_to_onnx(model, example, tmp_path / "m.onnx", opset=18, progress=False).summary.opset == 18


def test_an_opset_that_pytorch_does_not_write_is_refused(tmp_path):
    model, example = networks.make("residual")
    # its exporter starts at 18, and leaves that in place without an error where it cannot go back
    with pytest.raises(ExportError, match="got opset=13, and PyTorch wrote 18; give opset=18"):
        torch_to_onnx(model, example, tmp_path / "m.onnx", opset=13, progress=False)


def test_a_fault_between_export_and_file_fails_the_report(tmp_path, monkeypatch):
    import onnxslim

    right = onnxslim.slim

    def wrong(model):
        model = right(model)
        weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        array = onnx.numpy_helper.to_array(weight).transpose(0, 1, 3, 2)
        weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), weight.name))
        return model

    monkeypatch.setattr(onnxslim, "slim", wrong)
    model, example = networks.make("residual")
    export = torch_to_onnx(model, example, tmp_path / "m.onnx", progress=False)
    assert not export.passed and "FAIL" in export.to_text()


@pytest.mark.parametrize(
    ("model", "example", "error", "message"),
    [
        (networks.Decides(), torch.ones(2, 4), ExportError, r"decides by the values.*if x\.sum\(\) > 0.*torch\.where"),
        (networks.FixesItsBatch(), torch.ones(2, 4), ExportError, "fixes the batch to 2.*dynamic_batch=False"),
        (networks.SingularValues(), torch.ones(2, 4, 4), ExportError, "no ONNX form for the operator aten._linalg_svd"),
        (networks.Decides(), torch.ones(2, 5), InputError, r"does not take the example \(2, 5\).*give an example of"),
        (networks.Decides(), "hello", InputError, "got str in the example, expected tensors; wrap the network"),
        (networks.Decides(), (torch.ones(2, 4), "fast"), InputError, "got str in the example"),
        (networks.Decides(), np.array(["text"]), InputError, "got ndarray in the example"),
        (networks.Decides(), None, InputError, "does not say what it takes; give the example of one call"),
        (networks.Decides(), (), InputError, "got an empty example"),
        (networks.Decides().bfloat16(), torch.ones(2, 4).bfloat16(), InputError, r"bfloat16.*call model\.float\(\)"),
        (7, torch.ones(2, 4), InputError, "got int as the network"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_sentence(model, example, error, message, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an earlier file")
    with pytest.raises(error, match=message):
        torch_to_onnx(model, example, path, progress=False)
    assert path.read_bytes() == b"an earlier file"
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_an_answer_that_is_no_tensor_is_refused(tmp_path):
    class Text(torch.nn.Module):
        def forward(self, x):
            return {"value": x, "unit": "metre"}

    with pytest.raises(InputError, match="answers with str, expected tensors"):
        torch_to_onnx(Text(), torch.ones(2, 4), tmp_path / "m.onnx", progress=False)


def test_more_weights_than_one_file_holds_are_refused_before_the_export(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_model, "LARGEST_BYTES", 50)
    with pytest.raises(ExportError, match="GB of weights"):
        torch_to_onnx(networks.FixesItsBatch(), torch.ones(2, 4), tmp_path / "m.onnx", progress=False)


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch_model.onnx, "save", interrupt)
    model = networks.FixesItsBatch().train()
    with pytest.raises(KeyboardInterrupt):
        torch_to_onnx(model, torch.ones(2, 4), tmp_path / "m.onnx", dynamic_batch=False, progress=False)
    assert list(tmp_path.iterdir()) == [] and model.training


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OutputError, match="does not exist; create it first"):
        torch_to_onnx(networks.WritesIntoItsInput(), torch.ones(2, 4), tmp_path / "no" / "m.onnx", progress=False)


# --- programs, TorchScript and files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each kind that people call a PyTorch model."""
    folder = tmp_path_factory.mktemp("files")
    model, example = networks.make("residual")
    program = torch.export.export(model, example, dynamic_shapes=({0: BATCH},))
    torch.export.save(program, folder / "good.pt2")
    torch.export.save(torch.export.export(model, example), folder / "fixed.pt2")
    torch.export.save(torch.export.export(model.train(), example), folder / "training.pt2")
    model.eval()
    torch.save(model, folder / "whole.pt")
    torch.save(model.state_dict(), folder / "state.pth")
    torch.save({"epoch": 3, "model": model.state_dict(), "optimizer": {"lr": 0.1}}, folder / "checkpoint.pt")
    torch.save(example[0], folder / "tensor.pt")
    torch.jit.trace(model, example).save(str(folder / "script.pt"))
    (folder / "text.pt").write_text("hello")
    (folder / "empty.pt").touch()
    (folder / "weights.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    for name in ("good.pt2", "whole.pt"):
        data = (folder / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(data[: len(data) // 2])
    return folder


def test_a_program_is_opened_and_converted_without_an_example(files, tmp_path):
    model, _ = networks.make("residual")
    program = open_model(files / "good.pt2")
    export = torch_to_onnx(program, None, tmp_path / "m.onnx", progress=False)
    assert export.passed and export.notes == ()
    assert export.summary.inputs[0].shape == (None, 3, 32, 32)
    inputs = fresh_inputs("residual", 3)
    got = onnxruntime.InferenceSession(export.path).run(None, {"input": inputs[0].numpy()})[0]
    expected = answers_of(model, inputs)[0]
    assert np.abs(got - expected).max() < 1e-5 * np.ptp(expected)


def test_a_program_with_a_fixed_batch_stays_fixed_and_says_so(files, tmp_path):
    export = torch_to_onnx(open_torch_file(files / "fixed.pt2"), None, tmp_path / "m.onnx", progress=False)
    assert export.passed and export.summary.inputs[0].shape == (2, 3, 32, 32)
    assert "the batch is fixed, as in the program" in export.to_text()


def test_a_torchscript_module_that_the_caller_loaded_is_converted(files, tmp_path):
    model, example = networks.make("residual")
    script = torch.jit.load(files / "script.pt")
    export = torch_to_onnx(script, example, tmp_path / "m.onnx", progress=False)
    assert export.passed and export.summary.inputs[0].shape == (None, 3, 32, 32)
    got = onnxruntime.InferenceSession(export.path).run(None, {"input": example[0].numpy()})[0]
    expected = answers_of(model, example)[0]
    assert np.abs(got - expected).max() < 1e-5 * np.ptp(expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("training.pt2", r"exported in training mode.*call model\.eval\(\)"),
        ("whole.pt", r"needs code to be opened \(\S*Residual\).*weights_only stays on.*torch\.export\.save"),
        ("state.pth", r"weights only \(\d+ tensors, the first is body\.0\.weight\).*load_state_dict"),
        ("checkpoint.pt", r"a checkpoint \(epoch, model, optimizer\).*weights_only=True\)\['model'\]"),
        ("tensor.pt", "holds a Tensor, expected a network"),
        ("script.pt", r"is TorchScript.*not opened here.*torch_to_onnx\(torch\.jit\.load\(path\)"),
        ("text.pt", "is not a PyTorch file, or was cut short"),
        ("cut_good.pt2", "is not a PyTorch file, or was cut short"),
        ("cut_whole.pt", "is not a PyTorch file, or was cut short"),
        ("empty.pt", "is missing, a directory or empty"),
        ("nowhere.pt2", "is missing, a directory or empty"),
        ("weights.safetensors", "weights only, no network; build the network in Python"),
    ],
)
def test_a_file_that_is_no_network_is_told_apart(files, name, message):
    with pytest.raises(ModelError, match=message) as caught:
        open_torch_file(files / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


class Opens:
    """A pickle that runs code: unpickled, it makes the file `path`."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def rewrite(source, target, changes):
    """Copy an archive; `changes` maps the end of an entry's name to what its bytes become."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            for end, change in changes.items():
                data = change(data) if name.endswith(end) else data
            new.writestr(name, data)
    return target


def torch_pickle(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def planted(kind, source, folder, mark):
    """A `.pt2` that makes the file `mark` when PyTorch loads it."""

    def as_pickle(data):
        content = json.loads(data)
        content["config"]["body.0.weight"]["use_pickle"] = True
        return json.dumps(content).encode()

    def with_object(_):
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        return json.dumps({"config": {"thing": entry}}).encode()

    def with_call(data):
        text = json.dumps(f"[open('{mark}', 'w'), Symbol('s77', positive=True, integer=True)][1]")
        return re.sub(rb'"expr_str": "(?:[^"\\]|\\.)*"', lambda _: b'"expr_str": ' + text.encode(), data)

    changes = {
        "example": {"sample_inputs/model.pt": lambda _: torch_pickle(Opens(mark))},
        "weight": {"weights_config.json": as_pickle, "weights/weight_0": lambda _: torch_pickle(Opens(mark))},
        "object": {"constants_config.json": with_object},
        "expression": {"models/model.json": with_call},
    }
    path = rewrite(source, folder / f"{kind}.pt2", changes[kind])
    if kind == "object":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("good/data/constants/opaque_obj_0", pickle.dumps(Opens(mark)))
    return path


@pytest.mark.parametrize("kind", ["example", "weight", "object", "expression"])
def test_code_inside_a_program_is_not_run(kind, files, tmp_path):
    mark = tmp_path / "ran"
    path = planted(kind, files / "good.pt2", tmp_path, mark)
    with pytest.raises(ModelError, match=r"needs code to be opened \(.+\)"):
        open_torch_file(path)
    assert not mark.exists()
    try:  # the plant is real: PyTorch itself runs it
        torch.export.load(path)
    except Exception as error:
        print(error)
    assert mark.exists()


def test_compiled_code_and_doubled_entries_are_refused(files, tmp_path):
    compiled = rewrite(files / "good.pt2", tmp_path / "compiled.pt2", {})
    with zipfile.ZipFile(compiled, "a") as archive:
        archive.writestr("good/data/aotinductor/model/model.so", b"")
    with pytest.raises(ModelError, match="holds compiled code"):
        open_torch_file(compiled)
    doubled = rewrite(files / "good.pt2", tmp_path / "doubled.pt2", {})
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(doubled, "a") as archive:
        archive.writestr("good/models/model.json", b"{}")
    with pytest.raises(ModelError, match="two entries of one name"):
        open_torch_file(doubled)


def test_the_switch_for_pickles_is_put_back(files, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    open_torch_file(files / "good.pt2")
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in torch_model.os.environ


# --- the runner


def test_the_runner_is_pytorch_by_name_and_gives_fresh_arrays():
    model, example = networks.make("residual")
    with TorchRunner(model.train(), example) as runner:
        assert runner.info.name == f"PyTorch {torch.__version__.split('+')[0]} (CPU)"
        assert runner.inputs["input"].shape == (None, 3, 32, 32)
        x = fresh_inputs("residual", 3)[0].numpy()
        kept = x.copy()
        first, second = runner.infer({"input": x})["output"], runner.infer({"input": x})["output"]
        np.testing.assert_array_equal(first, second)  # no dropout, although the model is in training mode
        assert not np.shares_memory(first, second)
        np.testing.assert_array_equal(x, kept)
        with pytest.raises(FeedError, match="transpose"):
            runner.infer({"input": np.zeros((1, 32, 32, 3), np.float32)})
    assert model.training
    with pytest.raises(InputError, match="closed"):
        runner.infer({"input": x})


@pytest.fixture
def tf32():
    """Both switches on, as a user may have them."""
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = True
    yield switches
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


def test_tf32_is_off_during_a_call_and_as_it_was_after_it(tf32):
    seen = []

    class Watching(torch.nn.Module):
        def forward(self, x):
            seen.append([switch.allow_tf32 for switch in tf32])
            return x * 2

    with TorchRunner(Watching(), torch.ones(1, 3)) as runner:
        runner.infer({"input": np.ones((1, 3), np.float32)})
    assert seen == [[False, False]] * 2, "for the example, too"
    assert [switch.allow_tf32 for switch in tf32] == [True, True]


def test_two_runners_on_one_model_do_not_disturb_each_other():
    model, example = networks.make("residual")
    x = {"input": example[0].numpy()}
    expected = answers_of(model, example)[0]
    model.train()
    first = TorchRunner(model, example)
    second = TorchRunner(model, example)
    first.close()
    np.testing.assert_array_equal(second.infer(x)["output"], expected)


def test_open_runner_takes_a_program_and_says_what_a_module_needs(files):
    with open_runner(files / "good.pt2") as runner:
        assert runner.reason.endswith("the framework that made the model")
        assert runner.inputs["input"].shape == (None, 3, 32, 32)
    with pytest.raises(InputError, match=r"open it with TorchRunner\(model, example\)"):
        open_runner(networks.Residual())
    with pytest.raises(InputError, match="use backend='torch'"):
        open_runner(files / "good.pt2", backend="keras")


# --- the command line


def test_convert_and_verify_take_a_program(files, tmp_path, capsys):
    path = tmp_path / "m.onnx"
    assert cli.main(["convert", str(files / "good.pt2"), str(path), "--details"]) == 0
    out = capsys.readouterr().out
    assert "input   input: float32 (batch, 3, 32, 32)" in out and "PASS: ONNX Runtime" in out
    assert verify(files / "good.pt2", path, progress=False).passed
    assert cli.main(["convert", str(files / "state.pth"), str(tmp_path / "n.onnx")]) == 2
    assert "holds weights only" in capsys.readouterr().err


def test_verify_follows_a_program_from_stage_to_stage_and_finds_a_planted_fault(files, tmp_path):
    report = verify(files / "good.pt2", work_folder=tmp_path, progress=False)
    assert report.passed and [stage.name for stage in report.stages][:3] == ["PyTorch", "raw ONNX", "fixed ONNX"]
    spoiled = onnx.load(tmp_path / "raw.onnx")
    kernel = next(tensor for tensor in spoiled.graph.initializer if tensor.name == "body.2.first.weight")
    turned = onnx.numpy_helper.to_array(kernel).swapaxes(2, 3)
    kernel.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(turned), kernel.name))
    onnx.save(spoiled, tmp_path / "spoiled.onnx")
    caught = verify(files / "good.pt2", tmp_path / "raw.onnx", tmp_path / "spoiled.onnx", progress=False)
    assert caught.stage_at_fault == "spoiled.onnx"
    layer = next(node for node in spoiled.graph.node if kernel.name in node.input)
    assert caught.divergence.layer.candidate_tensor == layer.output[0]


class Remembering(torch.nn.Module):
    """Answers with a buffer that each call writes anew."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.zeros(2, 3))

    def forward(self, x):
        self.kept.copy_(x)
        return self.kept


def test_an_answer_does_not_change_with_the_next_call():
    with TorchRunner(Remembering(), torch.zeros(2, 3), dynamic_batch=False) as runner:
        (name,) = runner.inputs
        first = next(iter(runner.infer({name: np.ones((2, 3), np.float32)}).values()))
        runner.infer({name: np.full((2, 3), 7, np.float32)})
    assert np.array_equal(first, np.ones((2, 3)))


class Looking(torch.nn.Module):
    """A batch of rows, and a table that all of them share."""

    def forward(self, rows, table):
        return rows @ table


def test_an_axis_of_another_length_than_the_batch_stays_fixed():
    with TorchRunner(Looking(), (torch.zeros(2, 3), torch.zeros(3, 4))) as runner:
        assert [spec.shape for spec in runner.inputs.values()] == [(None, 3), (3, 4)]
