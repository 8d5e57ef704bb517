"""`trl-capo train` and its dry run."""
