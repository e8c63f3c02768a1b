"""Where frames come from; each source is one module and knows no sibling."""
