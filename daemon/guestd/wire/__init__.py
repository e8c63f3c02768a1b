"""Bytes to messages: framing, the schema of every dialect, decoding, repair, replies, signing. Pure."""
