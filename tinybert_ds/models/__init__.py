"""The models: Hugging Face encoders as teachers and students."""
