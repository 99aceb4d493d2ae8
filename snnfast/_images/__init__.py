"""Convolutions and max pooling of spikes, and the order of images in memory."""
