"""An index for other programs: files that they read, and indexes of other libraries."""
