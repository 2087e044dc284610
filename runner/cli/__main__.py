"""python -m taskyard.runner.cli: the command line, by whichever Python this is."""

from . import main

main(prog_name="taskyard")
