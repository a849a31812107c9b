"""The CLIP that a run starts from: its weights, its prompts, and the zero-shot teacher."""
