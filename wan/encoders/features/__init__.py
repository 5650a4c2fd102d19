"""The cached features, one file for each kind of model output; `wan.encoders.registry` is their table."""
