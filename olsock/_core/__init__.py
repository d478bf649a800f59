"""Thin, typed wrappers over the C core (csrc/core), one module an area. Nothing here decides anything."""
