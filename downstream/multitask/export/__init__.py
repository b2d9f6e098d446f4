"""One task of a trained model as a plain network for use elsewhere."""
