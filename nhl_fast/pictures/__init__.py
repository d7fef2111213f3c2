"""One style, plots, gallery."""
