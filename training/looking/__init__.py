"""Looks at a run that change nothing of it: held-out clips, early stopping, previews."""
