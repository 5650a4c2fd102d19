"""The version that files and records name."""

VERSION = "0.1.0"
"""The same as in `pyproject.toml`; a test keeps the two in step."""
