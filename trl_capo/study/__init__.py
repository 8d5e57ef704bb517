"""The study: methods, noise, seeds and learning rates compared by one ruler (docs/study.md)."""
