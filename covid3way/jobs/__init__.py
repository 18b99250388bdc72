"""One file per job: read inputs, call pure code, write outputs."""
