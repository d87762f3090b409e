"""The operations that random networks are made of, registered by name."""

from tests.norms.network.random_ops import arithmetic, functions, layers, moves, sorting, writes

__all__ = ["arithmetic", "functions", "layers", "moves", "sorting", "writes"]
