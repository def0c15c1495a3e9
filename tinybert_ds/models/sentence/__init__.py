"""Sentence encoders: what stands between a transformer's last states and one vector for each text."""
