"""The `twinlock` command, one file a command group."""
