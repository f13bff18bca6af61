"""PyTorch files that hold code, unpack to too much, or are damaged."""

import io
import json
import pickle
import zipfile

import fault_cases
import pytest
from fault_cases import answer, refusal, some

from workbench.models.files import open_model


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The entries of a small program."""
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("good") / "m.pt2"
    program = torch.export.export(
        torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval(), (torch.ones(2, 4),)
    )
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_archive(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


class Canary:
    """Pickled, it is a call that writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pickled(path):
    """A call in the forms that PyTorch reads: a bare pickle, and an archive of one."""
    content = io.BytesIO()
    pickle.dump(Canary(path), content, protocol=2)
    return content.getvalue()


def test_a_good_program_is_opened(good, tmp_path):
    assert open_model(write_archive(tmp_path / "m.pt2", good)).graph is not None


@pytest.mark.parametrize("entry", ["sample_inputs/model.pt", "weight_0", "constants/tensor_0", "model.json"])
def test_no_pickle_in_a_program_runs(entry, good, tmp_path):
    content = pickled(tmp_path / "canary")
    archive = io.BytesIO()
    write_archive(archive, {"archive/data.pkl": content, "archive/version": "3\n"})
    names = [name for name in good if name.endswith(entry)] or [f"m/data/{entry}"]
    for packed in (content, archive.getvalue()):
        answer(open_model, write_archive(tmp_path / "m.pt2", {**good, names[0]: packed}))
        assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2"])
@pytest.mark.parametrize("zipped", [False, True])
def test_no_pickle_of_weights_runs(suffix, zipped, good, tmp_path):
    path, content = tmp_path / f"m{suffix}", pickled(tmp_path / "canary")
    if zipped:
        write_archive(path, {"archive/data.pkl": content, "archive/version": "3\n"})
    else:
        path.write_bytes(content)
    refusal(open_model, path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("entry", range(11))
def test_an_entry_whose_checksum_is_wrong_has_an_answer(entry, good, tmp_path):
    name = list(good)[entry]
    path = write_archive(tmp_path / "m.pt2", good)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(name).header_offset + 30 + len(name)
    content[start] ^= 1
    path.write_bytes(content)
    text = answer(open_model, path)
    assert text or not name.endswith(".json")


TEXTS = ["", "{", "[]", "3", "null", '"x"', "NaN", "[" * 100_000, '{"a":' * 300 + "1" + "}" * 300, b"\xff\xfe", b"\0"]
TEXTS += ['{"graph_module": 3}', '{"graph_module": {"graph": []}}', '{"schema_version": {"major": 99}}']


@pytest.mark.parametrize("name", ["models/model.json", "model_weights_config.json", "model_constants_config.json"])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_json_of_another_form_has_an_answer(name, text, good, tmp_path):
    whole = next(entry for entry in good if entry.endswith(name))
    answer(open_model, write_archive(tmp_path / "m.pt2", {**good, whole: text}))


@pytest.mark.parametrize("change", ["missing", "huge", "twice"])
@pytest.mark.parametrize("entry", range(11))
def test_entries_that_are_missing_doubled_or_too_long_have_an_answer(change, entry, good, tmp_path):
    name, path = list(good)[entry], tmp_path / "m.pt2"
    if change == "missing":
        answer(open_model, write_archive(path, {one: content for one, content in good.items() if one != name}))
    elif change == "huge" and fault_cases.LONG | (entry % 4 == 0):
        write_archive(path, {**good, name: bytes(80 << 20)}, zipfile.ZIP_DEFLATED)
        assert "MB" in refusal(open_model, path)
    else:
        write_archive(path, good)
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, "x")
        assert "two entries" in refusal(open_model, path)


@pytest.mark.parametrize("field", some(range(40), 20))
@pytest.mark.parametrize("value", ['"x"', "-1", "null"])
def test_fields_of_another_type_have_an_answer(field, value, good, tmp_path):
    name = next(entry for entry in good if entry.endswith("models/model.json"))
    content = json.loads(good[name])
    keys = sorted({key for key, _ in walk(content)})
    key = keys[field % len(keys)]
    for holder in [holder for found, holder in walk(content) if found == key]:
        holder[key] = json.loads(value)
    answer(open_model, write_archive(tmp_path / "m.pt2", {**good, name: json.dumps(content)}))


def walk(content):
    """Each key of a JSON document with the dict that holds it."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(parts):
        if isinstance(content, dict):
            yield key, content
        yield from walk(value)


@pytest.mark.parametrize("part", some(range(1, 40), 8))
def test_a_program_cut_short_is_refused(part, good, tmp_path):
    path = write_archive(tmp_path / "m.pt2", good)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * part // 40])
    refusal(open_model, path)


@pytest.mark.parametrize("part", some(range(997), 20))
def test_a_flipped_bit_has_an_answer(part, good, tmp_path):
    path = write_archive(tmp_path / "m.pt2", good)
    content = bytearray(path.read_bytes())
    content[len(content) * part // 997] ^= 1 << part % 8
    path.write_bytes(content)
    answer(open_model, path)
