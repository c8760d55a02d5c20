"""Seeing it: pictures of graphs, summaries of results, a progress line. Leaves: they take data."""
