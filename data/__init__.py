"""The data of the package `workbench`; README.md says what each file is and where it is from."""
