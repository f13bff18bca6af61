import importlib.metadata
import itertools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# Each file of pins, and the extras whose packages it pins besides the base.
PIN_FILES = {
    "requirements.txt": re.search(r"^PINNED := (.+)$", MAKEFILE, re.M).group(1).split(),
    "requirements-rtx.txt": ["rtx"],
    "requirements-extras.txt": re.search(r"^PINNED_EXTRAS := (.+)$", MAKEFILE, re.M).group(1).split(),
}
ORDERED = {
    "jupyterlab",
    "keras2onnx",
    "matplotlib",
    "pycuda",
    "scikit-image",
    "segmentation-models",
    "tensorflow",
    "tensorrt",
}
PYTHONS = ["3.11.0", "3.11.9", "3.12.0", "3.13.0"]
PLATFORMS = {
    "Linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    "macOS": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    "Windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
}
ENVIRONMENTS = [
    pytest.param(
        {
            **names,
            "python_version": python.rpartition(".")[0],
            "python_full_version": python,
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "platform_machine": "x86_64",
            "extra": "",
        },
        id=f"{platform}-{python}",
    )
    for platform, names in PLATFORMS.items()
    for python in PYTHONS
]
# Part of Python itself since 3.5; pyproject.toml says why it is left out.
LEFT_OUT = {"typing"}


def declared():
    """Every requirement of pyproject.toml by name; a package in two extras is written the same in both."""
    found = {}
    for text in [*PROJECT["dependencies"], *itertools.chain(*EXTRAS.values())]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert found.setdefault(name, requirement) == requirement
    return found


def environment_lines():
    """The pip requirements of environment.yml, with those that are commented out."""
    text = (ROOT / "environment.yml").read_text(encoding="utf-8").partition("- pip:")[2]
    lines = re.findall(r"^ +(?:# )?- (\w[^#\n]*)", text, re.M)
    return [Requirement(line.strip()) for line in lines]


def pins(file="requirements.txt"):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines]


def applicable_pins(environment, file):
    found = {}
    for pin in pins(file):
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice"
            found[name] = next(iter(pin.specifier)).version
    return found


# pyproject.toml


def test_every_extra_says_in_one_line_who_needs_it():
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for extra in EXTRAS:
        at = lines.index(f"{extra} = [")
        assert re.match(r"# Who|# Readers", lines[at - 1]), extra
        assert not lines[at - 2].startswith("#"), extra


def test_every_dependency_has_a_reason_beside_it():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.partition("dependencies = [")[2].partition("[project.scripts]")[0]
    lines = [line for line in block.splitlines() if line.startswith('    "')]
    assert len(lines) == len(PROJECT["dependencies"]) + sum(map(len, EXTRAS.values()))
    assert [line for line in lines if not re.search(r'",\s+# \w', line)] == []


def test_version_is_the_package_s():
    import workbench

    assert PROJECT["version"] == workbench.__version__


# environment.yml


def test_environment_file_is_a_conda_environment():
    parsed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert parsed["channels"] == ["conda-forge"]
    python, pip, listed = parsed["dependencies"]
    assert python.partition("=")[2] in SpecifierSet(PROJECT["requires-python"])
    assert pip == "pip"
    assert listed["pip"][-1] == "-e ."


def test_environment_file_names_every_ordered_package():
    assert {canonicalize_name(requirement.name) for requirement in environment_lines()} >= ORDERED


def test_environment_file_holds_the_base_and_what_the_notebooks_need():
    needed = [*PROJECT["dependencies"], *EXTRAS["keras"], *EXTRAS["lab"], *EXTRAS["classic"], *EXTRAS["custom"]]
    listed = {str(requirement) for requirement in environment_lines()}
    assert {str(Requirement(text)) for text in needed} <= listed


@pytest.mark.parametrize("requirement", environment_lines(), ids=lambda requirement: requirement.name)
def test_environment_file_agrees_with_pyproject(requirement):
    assert requirement == declared()[canonicalize_name(requirement.name)]


def test_environment_file_says_who_needs_each_line():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8").partition("- pip:")[2]
    active = re.findall(r"^ +- (\w.*)$", text, re.M)
    assert [line for line in active if " # " not in line.replace("  #", " #")] == []


# requirements.txt


@pytest.mark.parametrize("file", PIN_FILES)
def test_requirements_are_plain_pins(file):
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    strange = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [\w '<>=!.()]+)?", line)]
    assert strange == []


@pytest.mark.parametrize("file", PIN_FILES)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_requirements_satisfy_pyproject(environment, file):
    pinned = applicable_pins(environment, file)
    wanted = [*PROJECT["dependencies"], *itertools.chain(*(EXTRAS[extra] for extra in PIN_FILES[file]))]
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("file", [file for file in PIN_FILES if file != "requirements.txt"])
def test_all_files_pin_the_same_versions(environment, file):
    base, other = (applicable_pins(environment, name) for name in ("requirements.txt", file))
    assert {name: version for name, version in other.items() if base.get(name, version) != version} == {}


def test_pytorch_s_gigabytes_are_installed_only_when_asked_for():
    assert not {"torch", "pnnx", "ncnn", "apache-tvm"} & {pin.name for pin in pins()}
    assert not [
        pin.name
        for pin in pins("requirements-extras.txt")
        if pin.name.startswith(("nvidia-cu", "nvidia-nccl", "triton"))
    ]
    assert "make test-extras" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")  # CI asks


def test_nvidia_s_proprietary_builder_is_installed_only_when_asked_for():
    assert "tensorrt-rtx" not in {pin.name for pin in pins()}
    assert "make rtx" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")  # CI asks


def test_requirements_are_complete():
    """pip installs them with --no-deps, so whatever an installed package asks for must be pinned."""
    missing, seen = set(), set()
    pending = [canonicalize_name(pin.name) for pin in pins() if pin.marker is None]
    pinned = {canonicalize_name(pin.name) for pin in pins()}
    for name in pending:
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            wanted = canonicalize_name(requirement.name)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                seen.add(wanted)
                missing |= {wanted} - pinned - LEFT_OUT
    assert missing == set()
    assert seen >= LEFT_OUT  # nothing is left out without need


# Makefile, CI, licence


def test_make_help_lists_every_target():
    targets = set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.M).group(1).split())
    shown = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True)
    assert {line.split()[1] for line in shown.stdout.splitlines()} == targets
    assert {"demo", "test", "lab", "lint", "notebooks", "bench", "pins", "clean"} < targets


def test_every_target_that_runs_something_installs_first():
    # test-gpu runs in the environment that GPU_PYTHON names; rtx and extras add to the one that is there
    assert re.search(r"^test-extras: \$\(EXTRAS_STAMP\) \$\(RTX_STAMP\) ##", MAKEFILE, re.M)
    targets = set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.M).group(1).split())
    targets -= {"help", "pins", "clean", "test-gpu", "rtx", "test-extras", "mutants", "extras"}
    assert {name for name in targets if re.search(rf"^{name}: \$\(STAMP\) ##", MAKEFILE, re.M)} == targets


def test_ci_script_can_be_run():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert PROJECT["license"] == "Apache-2.0"
