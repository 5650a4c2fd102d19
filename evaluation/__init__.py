"""Measures of what was rendered, reconstructed or generated; they read pixels and samples, never a model."""
