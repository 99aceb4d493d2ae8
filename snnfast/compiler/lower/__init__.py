"""The new graph: a `Linear` as a part of its unroll, the memory order of images, kernels, classes, asserts."""
