"""What the tests of hostile and damaged files share: how a case is answered, and how many are tried.

A case is answered well where the call returns, or raises a WorkbenchError whose text is one clear sentence, and the
files that were there before are there unchanged. `make faults` tries all that is generated, `make test` a part.
"""

import contextlib
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from workbench.cli.main import main
from workbench.core.errors import WorkbenchError

LONG = os.environ.get("WORKBENCH_FAULTS") == "long"
"""Whether everything that is generated is tried."""

LONGEST = 700
"""Letters of a sentence; what is longer is no sentence but a dump."""

_DUMP = re.compile(r"Traceback|unexpected [A-Z]\w+|\b0x[0-9a-f]{8,}|<[\w.]+ object at")

DEEP = "[" * 100_000 + "]" * 100_000
VALUES = {
    "null": "null", "a list": "[[1]]", "an object": '{"a": {"b": null}}', "a text": '"text"', "a number": "7",
    "a share": "0.5", "true": "true", "nan": "NaN", "infinity": "1e999", "a deep one": DEEP, "a huge one": "9" * 5000,
}  # fmt: skip
"""JSON of every type, for a field that takes one of them."""

Item = TypeVar("Item")


def some(items: Sequence[Item], count: int) -> list[Item]:
    """All items in the long version, else `count` of them, the same in every run, in their order."""
    if LONG or len(items) <= count:
        return list(items)
    chosen = set(random.Random(len(items)).sample(range(len(items)), count))
    return [item for index, item in enumerate(items) if index in chosen]


def with_field(fields: dict[str, Any], name: str, value: str) -> str:
    """JSON of these fields, with other JSON in one of them."""
    return json.dumps({**fields, name: "HERE"}).replace('"HERE"', value)


def is_sentence(text: str) -> None:
    """Fail where an answer is no clear sentence for a reader."""
    assert text.strip(), "an error without a text"
    assert "\n" not in text.strip(), f"more than a line: {text!r}"
    assert len(text) <= LONGEST, f"{len(text)} letters: {text!r}"
    assert not _DUMP.search(text), f"a dump, not a sentence: {text!r}"


def answer(call: Callable[..., Any], *given: Any, **named: Any) -> str:
    """Call, and return the sentence of the WorkbenchError that it raises; "" where it returns."""
    try:
        call(*given, **named)
    except WorkbenchError as error:
        is_sentence(str(error))
        return str(error)
    return ""


def refusal(call: Callable[..., Any], *given: Any, **named: Any) -> str:
    """Call, which must be refused, and return the sentence."""
    text = answer(call, *given, **named)
    assert text, "it was accepted"
    return text


def command(capsys: Any, *words: Any) -> tuple[int, str]:
    """Run a command in this process; its exit status and the sentence of its error, "" where there is none."""
    capsys.readouterr()
    try:
        status = main([str(word) for word in words])
    except SystemExit as ended:  # of argparse
        status = int(ended.code or 0)
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if "error: " in line]
    if status == 2:
        assert len(errors) == 1, said
        is_sentence(errors[0])
    return status, errors[0].partition("error: ")[2] if errors else ""


@contextlib.contextmanager
def untouched(*folders: Path) -> Iterator[None]:
    """Nothing in these folders may change, appear or vanish in the block, hidden files among them."""
    before = [_contents(folder) for folder in folders]
    yield
    for folder, was in zip(folders, before, strict=True):
        now = _contents(folder)
        changed = sorted(str(path) for path in was.keys() | now.keys() if was.get(path) != now.get(path))
        assert not changed, f"changed in {folder}: {', '.join(changed)}"


def hide(node: Any, name: str) -> None:
    """Hide an attribute of a TensorFlow node from Python, which leaves out what stands beside an unknown field."""
    alone = type(node)(attr={name: node.attr[name]}).SerializeToString()
    entry = alone[2 if alone[1] < 128 else 3 :] + b"\x7a\x01x"  # field 15, which no map has
    del node.attr[name]
    node.MergeFromString(alone[:1] + bytes([len(entry) & 127 | 128, len(entry) >> 7]) + entry)
    assert name not in node.attr


def _contents(folder: Path) -> dict[Path, bytes | str]:
    """The bytes of each file, the kind of everything else."""
    found: dict[Path, bytes | str] = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[path] = f"link to {os.readlink(path)}"
        else:
            found[path] = path.read_bytes() if path.is_file() else "folder" if path.is_dir() else "special"
    return found
