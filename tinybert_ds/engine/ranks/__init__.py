"""The ranks: how they meet, act together and fail together."""
