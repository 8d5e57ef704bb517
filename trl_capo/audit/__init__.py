"""`trl-capo audit`: rank pairs by how likely their labels are wrong."""
