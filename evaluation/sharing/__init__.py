"""A trained model for others: a folder for the Hugging Face hub with its card, and an encoder that needs only torch."""
