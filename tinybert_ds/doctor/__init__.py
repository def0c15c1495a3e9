"""`python -m tinybert_ds.doctor`: can this machine, or these hosts, run the job, and what is to be done if not."""
