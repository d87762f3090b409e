"""What the papers' studies share: parts, claims, statistics, tables, printed numbers."""
