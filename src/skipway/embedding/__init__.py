"""Images as vectors: what a stage of a network says of an image, pooled over its pixels.

Needs torch where an embedder is loaded, not where this is imported.
"""

from skipway.embedding.embedder import Embedder, Pooling, load_embedder

__all__ = ["Embedder", "Pooling", "load_embedder"]
