"""Views and slice stacks, losses, devices, checkpoints, the training loop."""
