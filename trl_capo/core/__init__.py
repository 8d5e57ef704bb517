"""The method: losses, noise model, estimator, configuration, metrics and trainer."""
