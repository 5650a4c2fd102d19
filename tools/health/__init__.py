"""The doctor's checks; `table.py` lists them."""
