"""`make demo` and `make demo-full`: train on the shipped clips, and measure whether sound moves the mouth."""
