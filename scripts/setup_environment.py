"""Make the virtual environment: check this machine first, install the pinned packages, leave a stamp.

It starts on whatever Python is there, to say so when that one is too old: the syntax stays at Python 3.6.
The stamp `.installed` in the environment is written last, so an interrupted installation leaves none.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
NEEDED_GB = 4.0
DOWNLOAD_GB = 0.9
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REQUIREMENTS = os.path.join(ROOT, "requirements.txt")
NETWORK_SIGNS = re.compile(
    "NewConnectionError|NameResolutionError|name resolution|ConnectTimeout|ReadTimeout|ProxyError|SSLError"
    "|Connection refused|Connection aborted|Connection broken|RemoteDisconnected|Network is unreachable"
)


class SetupError(Exception):
    """The environment cannot be made; the message is one sentence that says why and what to do."""


def check_python(version):
    """Refuse a Python that the pinned packages do not support; `version` is (major, minor, ...)."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        raise SetupError(
            f"got Python {version[0]}.{version[1]}, but this project needs Python 3.11, 3.12 or 3.13; "
            "install one of them and name it, as in: make demo PYTHON=python3.12"
        )


def check_venv_module():
    """Refuse a Python without the parts that make environments (Debian and Ubuntu package them apart)."""
    for name in ("venv", "ensurepip"):
        if importlib.util.find_spec(name) is None:
            package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
            raise SetupError(
                f"this Python has no module {name}, which makes environments; install it "
                f"(Debian and Ubuntu: apt install {package}) and run the same command again"
            )


def check_free_space(folder, needed_gb):
    """Refuse a disk with less than `needed_gb` (10**9 bytes) free under the folder, which exists."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < needed_gb:
        raise SetupError(
            f"got {free_gb:.1f} GB free in {folder}, but the packages need about {needed_gb:.1f} GB; "
            "free some space or move the project to another disk"
        )


def check_target(target):
    """Refuse to write into a folder that holds something else than an environment."""
    is_environment = os.path.exists(os.path.join(target, "pyvenv.cfg"))
    if os.path.isdir(target) and os.listdir(target) and not is_environment:
        raise SetupError(f"got {target}, a folder that is not a virtual environment; give a new folder")


def environment_python(target):
    """The path of the environment's own Python."""
    parts = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return os.path.join(target, *parts)


def is_usable(target):
    """Whether the environment has this Python's version and a pip that runs."""
    question = "import pip, sys; print(*sys.version_info[:2])"
    try:
        answer = subprocess.check_output([environment_python(target), "-c", question], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return False
    return answer.split() == [b"%d" % number for number in sys.version_info[:2]]


def explain_failure(log):
    """The one sentence for a failed pip, from the text that it printed."""
    end = "\n".join(log.splitlines()[-40:])
    if "No space left on device" in end:
        return "the disk is full; free some space (or set TMPDIR to a folder on a larger disk)"
    if NETWORK_SIGNS.search(end):
        return "the package index cannot be reached; check the network connection and the proxy settings"
    errors = [line for line in log.splitlines() if line.startswith("ERROR")]
    return errors[-1][:200] if errors else "pip ended without saying why"


class Progress:
    """A counter on the terminal, moved by pip's output; a plain log gets two lines instead."""

    def __init__(self, total):
        self.seen, self.total = 0, total
        self.live = sys.stdout.isatty()

    def show(self, line):
        """Take one line of pip's output."""
        self.seen += "(from -r " in line or line.startswith("Ignoring ")
        step = re.match(r"(Collecting|Downloading) \S+( \([^)]*B\))?|Installing collected packages", line)
        if step and self.live:
            percent = 100 * min(self.seen, self.total) // self.total
            print(f"\r\033[K{percent:3d} %  {step.group(0)[:70]}", end="", flush=True)
        elif step and step.group(0).startswith("Installing"):
            print("Unpacking the packages", flush=True)

    def end(self):
        """Wipe the counter."""
        if self.live:
            print("\r\033[K", end="", flush=True)


def run_pip(target, log_path):
    """Install the pins, which are complete, and this project; SetupError if pip fails."""
    command = [
        environment_python(target),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--no-deps", "-r", REQUIREMENTS, "-e", ROOT]
    with open(REQUIREMENTS, encoding="utf-8") as lines:
        progress = Progress(total=sum("==" in line for line in lines))
    with open(log_path, "w", encoding="utf-8") as log:
        pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in pip.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            log.write(text + "\n")
            progress.show(text.strip())
    progress.end()
    if pip.wait() != 0:
        with open(log_path, encoding="utf-8") as log:
            raise SetupError(f"{explain_failure(log.read())}; what pip said is in {log_path}")


def install(target, needed_gb):
    """Check, make the environment, install the pins and this project, write the stamp."""
    stamp = os.path.join(target, ".installed")
    check_target(target)
    if os.path.exists(stamp):
        os.remove(stamp)
    else:
        check_free_space(os.path.dirname(os.path.abspath(target)), needed_gb)
    if not is_usable(target):
        print(f"Making the environment {target} with Python {sys.version.split()[0]}", flush=True)
        subprocess.check_call([sys.executable, "-m", "venv", "--clear", target])
    print(f"Installing the pinned packages (the first time: about {DOWNLOAD_GB} GB to download)", flush=True)
    run_pip(target, os.path.join(target, "install.log"))
    open(stamp, "w").close()
    print(f"The environment {target} is ready", flush=True)


def main():
    """Read the command line; a failure is one sentence and exit code 1."""
    parser = argparse.ArgumentParser(description="Make the project's virtual environment.")
    parser.add_argument("target", nargs="?", default=".venv", help="its folder (default: .venv)")
    parser.add_argument("--needed-gb", type=float, default=NEEDED_GB, help="free disk space asked for, in GB")
    arguments = parser.parse_args()
    try:
        check_python(sys.version_info)
        check_venv_module()
        install(arguments.target, arguments.needed_gb)
    except SetupError as error:
        sys.exit(f"cannot install: {error}")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"cannot install: the environment {arguments.target} cannot be made: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing is lost, run the same command again")


if __name__ == "__main__":
    main()
