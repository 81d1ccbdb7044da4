"""`python -m letgo` is the command `letgo`."""

from letgo.cli import main

main()
