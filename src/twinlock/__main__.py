"""`python -m twinlock` is the `twinlock` command."""

from twinlock.cli.main import app

app()
