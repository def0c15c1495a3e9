"""What a checkpoint is: how it is written, read, kept, cut anew and trusted."""
