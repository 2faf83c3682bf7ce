"""The data model: operations, merging, queries, snapshots. Pure."""
