"""The package away from its repository: as a wheel, as an editable install and as a plain copy."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
LOOK = """
import sys, workbench
from workbench.core.files import data_file
from workbench.measure.rows import load_recording
print(workbench.__file__, data_file("street_scenes"), len(load_recording("h200_precision")))
"""


def call(*command, cwd, **environment):
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=found | environment, capture_output=True, text=True, timeout=280
    )


def ok(*command, cwd, **environment):
    done = call(*command, cwd=cwd, **environment)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The files that a build reads, so that it leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("workbench", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Make an environment that has this one's packages, but for the project itself."""

    def make(*install):
        folder = tmp_path_factory.mktemp("environment")
        ok(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
        (packages,) = folder.glob("lib/python*/site-packages")
        here = Path(sys.prefix, packages.relative_to(folder))
        (packages / "others.pth").write_text(f"{here}\n")  # its own .pth files, the editable install's, are not read
        python = folder / "bin" / "python"
        ok(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", *install, cwd=folder)
        return python

    if os.name == "nt":
        pytest.skip("the folders of an environment are others on Windows")
    return make


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    ok(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", source, "-w", folder,
       cwd=folder)  # fmt: skip
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, environment):
    return environment(wheel)


def test_every_folder_of_the_package_is_listed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "workbench").rglob("__init__.py")}
    assert {".".join(folder.parts) for folder in folders} | {"workbench.data"} == set(SETUPTOOLS["packages"])


def test_the_wheel_holds_the_package_its_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"workbench"}
    data = {name.removeprefix("workbench/data/") for name in names if name.startswith("workbench/data/")}
    kept = {path.relative_to(ROOT / "data") for path in (ROOT / "data").rglob("*") if path.is_file()}
    assert data == {path.as_posix() for path in kept if path.suffix not in (".md", ".pyc")}
    assert {"workbench/py.typed", "workbench/__init__.pyi"} <= set(names)
    plugins = {Path(name).name for name in names if name.startswith("workbench/engine/plugins/")}
    assert plugins == {path.name for path in (ROOT / "workbench" / "engine" / "plugins").iterdir()}
    assert {"kernels.cu", "plugins.cpp", "harness.cpp", "CMakeLists.txt"} <= plugins


def test_an_installed_wheel_finds_its_weights_scenes_and_recordings(installed, tmp_path):
    where, scenes, rows = ok(installed, "-c", LOOK, cwd=tmp_path).split()
    packages = str(installed.parents[1])
    assert where.startswith(packages) and scenes.startswith(packages)
    assert int(rows) > 10


def test_an_installed_wheel_runs_the_demonstration_outside_the_repository(installed, tmp_path):
    for name in ("json", "numpy", "workbench"):  # what lies in the current folder is not ours
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    out = ok(installed.with_name("workbench"), "demo", "-o", "out", "--weights", "random", cwd=tmp_path)
    assert "fcn_vgg16: PASS" in out and "resnet50: PASS" in out
    assert len(list((tmp_path / "out").glob("fcn_vgg16_scene_*.png"))) == 3


def test_an_editable_install_finds_its_data(source, environment, tmp_path):
    python = environment("-e", source)
    where, scenes, _ = ok(python, "-c", LOOK, cwd=tmp_path).split()
    assert where.startswith(str(source)) and scenes.startswith(str(source))


def test_a_plain_copy_finds_the_data_beside_it(source, tmp_path):
    for name in ("workbench", "data"):
        shutil.copytree(source / name, tmp_path / name)
    where, scenes, _ = ok(sys.executable, "-S", "-c", with_packages(LOOK, tmp_path), cwd="/").split()
    assert where.startswith(str(tmp_path)) and scenes.startswith(str(tmp_path))


def test_a_plain_copy_without_data_says_where_it_looked(source, tmp_path):
    shutil.copytree(source / "workbench", tmp_path / "workbench")
    done = call(sys.executable, "-S", "-c", with_packages(LOOK, tmp_path), cwd="/")
    last = done.stderr.strip().splitlines()[-1]
    assert f"looked for {tmp_path / 'data' / 'street_scenes'}" in last
    assert "copy its folder data/ beside workbench/" in last


def with_packages(code, first):
    """Run with the packages of this environment, but without its `.pth` files, which name the project."""
    packages = [path for path in sys.path if "site-packages" in path]
    return f"import sys; sys.path[:0] = {[str(first), *packages]!r}\n{code}"
