"""`trl-capo evaluate`: measure finished models on preference pairs."""
