"""The engines: everything that touches DeepSpeed, and the training loop."""
