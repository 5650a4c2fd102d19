"""Rendered talking heads whose mouths follow a sound by known laws: the sounds, the pictures and nothing learned."""
