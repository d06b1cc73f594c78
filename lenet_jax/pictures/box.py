"""A rectangle on a picture. Coordinates are (row, column)."""

from typing import NamedTuple


class Box(NamedTuple):
    """The rows from `top` up to `bottom` and the columns from `left` up to `right`, in pixels."""

    top: float
    left: float
    bottom: float
    right: float

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def size(self) -> float:
        """The length of the diagonal."""
        return (self.height**2 + self.width**2) ** 0.5

    @property
    def slices(self) -> tuple[slice, slice]:
        """The box as an index of an array [H, W, ...]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def shifted(self, rows: float, columns: float) -> "Box":
        return Box(self.top + rows, self.left + columns, self.bottom + rows, self.right + columns)

    def seen_from(self, origin: "Box") -> "Box":
        """The same box in coordinates that start at the top left corner of `origin`."""
        return self.shifted(-origin.top, -origin.left)

    def scaled(self, factor: float) -> "Box":
        """The same box on a picture with `factor` times as many pixels per side."""
        return Box(*(side * factor for side in self))

    def grown(self, margin: float) -> "Box":
        top, left, bottom, right = self
        return Box(top - margin, left - margin, bottom + margin, right + margin)

    def union(self, other: "Box") -> "Box":
        """The smallest box that contains both."""
        return Box(*map(min, self[:2], other[:2]), *map(max, self[2:], other[2:]))

    def intersection(self, other: "Box") -> "Box":
        """The part that both have in common; a side is negative if they do not overlap."""
        return Box(*map(max, self[:2], other[:2]), *map(min, self[2:], other[2:]))

    def margins(self, inner: "Box") -> tuple[float, float, float, float]:
        """How far each side of `inner` lies within this box; negative where it sticks out."""
        return (
            *(inner.top - self.top, inner.left - self.left),
            *(self.bottom - inner.bottom, self.right - inner.right),
        )

    def contains(self, inner: "Box") -> bool:
        return min(self.margins(inner)) >= 0

    def gaps(self, other: "Box") -> tuple[float, float]:
        """How many rows and columns lie between the two; negative where they overlap."""
        common = self.intersection(other)
        return -common.height, -common.width
