"""Code that several analyses share: the analysis object, samples of points, and layers in order."""
