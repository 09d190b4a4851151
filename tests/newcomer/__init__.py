"""The fresh-machine gate: the commands of README.md, run on Debian machines that had nothing but Debian."""
