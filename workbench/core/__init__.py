"""What everything stands on: errors, files, packages, the runner contract, comparing, reports, child processes."""
