"""`trl-capo study`: compare methods under label noise."""
