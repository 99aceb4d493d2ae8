"""One call of a neuron over time: its checks, the engines that compute it, autograd, and its node in a graph."""
