"""Load models, score answers, and rank labels by a reference's hidden states."""
