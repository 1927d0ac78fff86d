"""Which images are the same picture: same bytes, near hashes, near embeddings."""
