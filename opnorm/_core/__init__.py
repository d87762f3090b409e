"""Private numerical kernels and helpers, each written once; nothing here is public."""
