"""NestedIndex: ids, segments, file."""
