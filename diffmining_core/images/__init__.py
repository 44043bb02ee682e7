"""Where images come in: decoding, listing, indexing, and the built-in drawn scenes."""
