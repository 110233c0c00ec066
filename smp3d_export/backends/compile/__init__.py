"""`torch.compile`: a captured program and what the compiler made of it."""
