"""`workbench doctor`: what this machine has."""

import argparse

DESCRIPTION = "Tell what this machine has and which runners can be used on it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None beside the common ones."""


def run(options: argparse.Namespace) -> int:
    """Report, and name what is missing."""
    from workbench.runners import machine

    print(machine.environment())
    problems = machine.diagnose()
    for problem in problems:
        print(f"missing: {problem}")
    return 1 if problems else 0
