"""Command lines that ask for what cannot be: refused at once, in one sentence, with exit status 2."""

import time

import fault_cases
import pytest
from onnx_networks import save_picture_network

SOON_S = 5
"""Seconds that a refusal may take on a busy machine, the imports of onnx among them; the work takes longer."""

CASES = {
    "an opset of 0": ("convert resnet50 x.onnx --opset 0", "opset"),
    "an opset below 0": ("convert resnet50 x.onnx --opset -1", "opset"),
    "an opset of tomorrow": ("convert resnet50 x.onnx --opset 99", "opset"),
    "an opset of words": ("convert resnet50 x.onnx --opset latest", "opset"),
    "an output of another kind": ("convert resnet50 x.pb", ".onnx"),
    "an output without a suffix": ("convert resnet50 x", ".onnx"),
    "no output": ("convert resnet50", "output"),
    "an output in a missing folder": ("convert resnet50 no/x.onnx", "no"),
    "a graph in a missing folder": ("convert resnet50 x.onnx --pb no/x.pb", "no"),
    "a missing file": ("convert missing.keras x.onnx", "missing.keras"),
    "a folder as the output": ("convert resnet50 folder.onnx", "folder.onnx"),
    "an unknown exporter": ("convert net.h5 x.onnx --exporter onnxmltools", "exporter"),
    "one number for a size": ("convert resnet50 x.onnx --spatial 8", "spatial"),
    "a size of nothing": ("convert resnet50 x.onnx --spatial 0 0", "spatial"),
    "a size below nothing": ("convert resnet50 x.onnx --spatial 8 -8", "spatial"),
    "a size beyond all tensors": (f"convert resnet50 x.onnx --spatial 8 {'9' * 5000}", "spatial"),
    "a size of words": ("convert resnet50 x.onnx --spatial a b", "spatial"),
    "an unknown option": ("convert resnet50 x.onnx --fast", "--fast"),
    "an unknown command": ("translate resnet50 x.onnx", "translate"),
    "no command": ("", "COMMAND"),
    "missing feeds": ("convert net.onnx x.onnx --feeds missing.npz", "missing.npz"),
    "a plan of another kind": ("build net.onnx -o x.trt", ".plan"),
    "a plan in a missing folder": ("build net.keras -o no/x.plan", "no"),
    "a plan without a name": ("build net.onnx -o .", "."),
    "no plan": ("build net.onnx", "output"),
    "a time limit of words": ("build net.onnx -o x.plan --timeout soon", "timeout"),
    "no time": ("build net.onnx -o x.plan --timeout 0", "seconds"),
    "a time below 0": ("build net.onnx -o x.plan --timeout -1", "seconds"),
    "endless time": ("build net.onnx -o x.plan --timeout inf", "seconds"),
    "no number for the time": ("build net.onnx -o x.plan --timeout nan", "seconds"),
    "too much time": ("build net.onnx -o x.plan --timeout 1e300", "seconds"),
    "a precision that is a comma": ("build net.keras -o x.plan --precision ,", "precision"),
    "an unknown precision": ("build net.keras -o x.plan --precision int4", "int4"),
    "nodes to keep of float32": ("build net.keras -o x.plan --keep-nodes a", "keep"),
    "scales of float16": ("build net.keras -o x.plan --precision fp16 --calibration scales.json", "calibration"),
    "pictures of float32": ("build net.keras -o x.plan --images pictures", "images"),
    "no memory": ("build net.keras -o x.plan --workspace-mib 0", "workspace"),
    "memory below 0": ("build net.keras -o x.plan --workspace-mib -5", "workspace"),
    "memory of words": ("build net.keras -o x.plan --workspace-mib much", "workspace"),
    "a profile of words": ("build net.keras -o x.plan --profile input", "profile"),
    "a profile of two shapes": ("build net.keras -o x.plan --profile input=1x3,2x3", "profile"),
    "a profile without a name": ("build net.keras -o x.plan --profile =1x3", "profile"),
    "pictures and feeds": ("build net.onnx -o x.plan --images pictures --feeds f.npz", "--feeds"),
    "a report in a missing folder": ("verify net.onnx --json no/x.json", "no"),
    "a report in a missing folder of the root": ("verify net.onnx --json /no/x.json", "/no"),
    "a report over a folder": ("verify net.onnx --json pictures", "pictures"),
    "a figure of text": ("verify net.onnx --figure x.txt", "x.txt"),
    "a figure without a suffix": ("verify net.onnx --figure x", "x"),
    "a figure of another kind": ("verify net.onnx --figure x.onnx", "x.onnx"),
    "a figure in a missing folder": ("verify net.onnx --figure no/x.png", "no"),
    "a figure of precisions": ("verify net.onnx --precision fp16 --figure x.doc", "x.doc"),
    "a report of precisions in a missing folder": ("verify net.onnx --precision fp16 --json no/x.json", "no"),
    "precisions that are a comma": ("verify net.onnx --precision ,", "precision"),
    "precisions with commas": ("verify net.onnx --precision fp16,int8", "fp16,int8"),
    "an unknown precision to judge": ("verify net.onnx --precision fp12", "fp12"),
    "two networks and a precision": ("verify net.onnx net.onnx --precision fp16", "--precision"),
    "labels without a precision": ("verify net.onnx --labels pictures", "--precision"),
    "a limit without a precision": ("verify net.onnx --max-miou-drop 0.1", "--precision"),
    "a limit above 1": ("verify net.onnx --precision fp16 --max-miou-drop 7", "limit"),
    "a limit that is no number": ("verify net.onnx --precision fp16 --max-miou-drop nan", "limit"),
    "missing pictures": ("verify net.onnx --images missing", "missing"),
    "pictures that are a file": ("verify net.onnx --images net.onnx", "net.onnx"),
    "a folder without pictures": ("verify net.onnx --images empty", "empty"),
    "an unknown preprocessing": ("verify net.onnx --preprocess magic", "magic"),
    "a folder for files that is a file": ("verify net.onnx --keep-files net.onnx/x", "net.onnx"),
    "nothing to verify": ("verify", "model"),
    "a network that is none": ("sweep nope", "nope"),
    "a missing network": ("sweep nope.onnx", "nope.onnx"),
    "a network of a name that no disk has": (f"sweep {'x' * 300}", "x"),
    "a network of an empty name": ("sweep ''", ""),
    "rows in a missing folder": ("sweep net.onnx -o no/x.jsonl", "no"),
    "a report of rows in a missing folder": ("sweep net.onnx --json no/x.json", "no"),
    "a figure of rows as text": ("sweep net.onnx --figure x.txt", "x.txt"),
    "a batch of 0": ("sweep net.onnx --batch 0", "batch"),
    "a batch below 0": ("sweep net.onnx --batch -1", "batch"),
    "a batch of words": ("sweep net.onnx --batch all", "batch"),
    "a size of one number": ("sweep net.onnx --size 16", "16"),
    "a size of three numbers": ("sweep net.onnx --size 16x16x3", "16x16x3"),
    "a size below 0": ("sweep net.onnx --size -1x-1", "size"),
    "a huge size": (f"sweep net.onnx --size 8x{'9' * 5000}", "size"),
    "no size": ("sweep net.onnx --size 0x0", "0x0"),
    "an unknown backend": ("sweep net.onnx --backend tpu", "tpu"),
    "no calls": ("sweep net.onnx --runs 0", "runs"),
    "labels without pictures": ("sweep net.onnx --labels pictures", "labels"),
    "missing labels": ("sweep net.onnx --images pictures --labels missing", "missing"),
    "missing scales": ("sweep net.onnx --precision int8 --calibration missing.json", "missing.json"),
    "scales that are none": ("sweep net.onnx --precision int8 --calibration net.onnx", "net.onnx"),
    "a missing folder of streets": ("segment missing -o out", "missing"),
    "an empty folder of streets": ("segment empty -o out", "empty"),
    "streets that are a file": ("segment net.onnx -o out", "net.onnx"),
    "streets over themselves": ("segment pictures -o pictures", "pictures"),
    "streets into a file": ("segment pictures -o net.onnx", "net.onnx"),
    "an unknown kind of result": ("segment pictures -o out --save video", "video"),
    "no workers": ("segment pictures -o out --workers 0", "workers"),
    "a missing model of streets": ("segment pictures -o out --model missing.onnx", "missing.onnx"),
    "a model of no streets": ("segment pictures -o out --model net.onnx", "Cityscapes"),
    "an unknown backend of streets": ("segment pictures -o out --model net.onnx --backend tpu", "tpu"),
    "weights and a model": ("segment pictures -o out --model net.onnx --weights camvid", "--weights"),
    "missing weights": ("segment pictures -o out --weights missing.npz", "missing.npz"),
    "a demonstration of missing pictures": ("demo --images missing -o out", "missing"),
    "a demonstration into a file": ("demo -o net.onnx", "net.onnx"),
    "a demonstration of no weights": ("demo --weights some", "some"),
    "a doctor with a patient": ("doctor net.onnx", "net.onnx"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a network, a picture, and little else."""
    from PIL import Image

    save_picture_network(tmp_path / "net.onnx")
    for name in ("pictures", "empty", "folder.onnx"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (24, 16), (90, 120, 30)).save(tmp_path / "pictures" / "p.png")
    for name in ("net.keras", "net.h5"):
        (tmp_path / name).write_bytes(b"whoever opens this is too late")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("words", "named"), CASES.values(), ids=CASES)
def test_it_is_refused_by_name_before_the_work(words, named, here, capsys):
    start = time.perf_counter()
    # a folder of results may have been made before the network is opened
    before = {path for path in here.rglob("*") if path.is_file()}
    with fault_cases.untouched(*(path for path in here.iterdir() if path.is_dir())):
        status, text = fault_cases.command(capsys, *(word.replace("''", "") for word in words.split()))
    assert status == 2
    assert named in text
    assert "unexpected" not in text
    assert {path for path in here.rglob("*") if path.is_file()} == before
    assert time.perf_counter() - start < SOON_S
