"""The audit: which preference pairs are probably labelled wrong (docs/audit.md)."""
