"""What a user sees of a run: lines, logs, pictures, trackers, the final page."""
