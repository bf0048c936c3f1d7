"""The shapes of a model that a plan needs: from its `config.json`, and from one image where its family needs that."""

from dataclasses import dataclass
from typing import Self

from alignkd.pipeline.plan.disk.image_shape import ImageShape
from alignkd.vlm.families.sizes import ModelSize


@dataclass(frozen=True, kw_only=True)
class ModelShapes:
    """A model's shapes and sizes.

    Attributes:
        size: shapes of the model, and parameter counts.
        image: one image; every image where all have the same number of vision tokens. Elsewhere patches and bytes of
            other images are assumed to be in proportion to their vision tokens.
    """

    size: ModelSize
    image: ImageShape

    @classmethod
    def of(cls, size: ModelSize, image: ImageShape | None = None) -> Self:
        """The shapes of a model.

        Args:
            image: measured image; may be None where every image has the same number of vision tokens.
        """
        if image is None:
            patches, side, tokens = size.tower.patches, size.image_size, size.vision_tokens
            assert patches is not None and side is not None and tokens is not None
            image = ImageShape(tokens=tokens, patches=patches, array_bytes=4 * 3 * side**2)
        return cls(size=size, image=image)

    @property
    def query_width(self) -> int:
        """Values of all query heads of a token."""
        return self.size.num_heads * self.size.head_dim

    @property
    def key_width(self) -> int:
        """Values of all key heads of a token."""
        return self.size.num_key_value_heads * self.size.head_dim

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding and of the head together; a shared matrix counts once."""
        return self.size.vocab_size * (1 if self.size.tied_head else 2)

    def patches_of(self, vision_tokens: float) -> float:
        """Patches of the images with so many vision tokens."""
        return vision_tokens * self.image.patches / self.image.tokens

    def array_bytes_of(self, vision_tokens: float) -> int:
        """Bytes of the arrays of the images with so many vision tokens."""
        return round(vision_tokens * self.image.array_bytes / self.image.tokens)
