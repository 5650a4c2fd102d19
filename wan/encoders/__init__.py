"""Encoders: models that turn media into features (`vae`, `text`, `image`, `audio`), and the cache's view of them."""
