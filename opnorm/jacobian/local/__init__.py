"""The Lipschitz constant on a ball around a point, of a network and of its blocks."""
