"""What a run keeps, and goes on from: states, records, what may change in between, the best weights."""
