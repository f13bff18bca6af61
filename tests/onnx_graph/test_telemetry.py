"""Nothing about a reader's network leaves the machine."""

import os
import subprocess
import sys

from onnx_networks import save_picture_network


def test_onnx_runtime_reports_nothing_and_keeps_no_record(tmp_path):
    network = save_picture_network(tmp_path / "network.onnx")
    folders = {name: tmp_path / name.lower() for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
    for folder in folders.values():
        folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = f"import workbench as wb\nwith wb.open_runner({str(network)!r}): pass"
    environment |= {name: str(folder) for name, folder in folders.items()}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert [path for folder in folders.values() for path in folder.rglob("*")] == []
