"""Rectangles on a picture, in pixels; coordinates are (row, column)."""

from typing import NamedTuple


class Box(NamedTuple):
    """The rows from `top` up to `bottom`, and the columns from `left` up to `right`."""

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
        """The index of the box in an array [H, W, ...]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def shifted(self, rows: float, columns: float) -> "Box":
        return Box(self.top + rows, self.left + columns, self.bottom + rows, self.right + columns)

    def seen_from(self, origin: "Box") -> "Box":
        """The same box in coordinates that start at the top left corner of `origin`."""
        return self.shifted(-origin.top, -origin.left)

    def scaled(self, factor: float) -> "Box":
        """The same box on a picture that has `factor` times as many pixels per side."""
        return Box(*(side * factor for side in self))

    def grown(self, margin: float) -> "Box":
        """The box with a margin on all four sides."""
        return Box(
            self.top - margin, self.left - margin, self.bottom + margin, self.right + margin
        )

    def intersection(self, other: "Box") -> "Box":
        """The box that both have in common, if any."""
        return Box(*map(max, self[:2], other[:2]), *map(min, self[2:], other[2:]))

    def union(self, other: "Box") -> "Box":
        """The smallest box that contains both."""
        return Box(*map(min, self[:2], other[:2]), *map(max, self[2:], other[2:]))

    def margins(self, inner: "Box") -> tuple[float, float, float, float]:
        """The distances from each side to that side of `inner`; negative where it sticks out."""
        return (
            inner.top - self.top,
            inner.left - self.left,
            self.bottom - inner.bottom,
            self.right - inner.right,
        )

    def contains(self, inner: "Box") -> bool:
        return (
            self.top <= inner.top
            and self.left <= inner.left
            and inner.bottom <= self.bottom
            and inner.right <= self.right
        )

    def gaps(self, other: "Box") -> tuple[float, float]:
        """How many rows and columns lie between the two; negative where they overlap."""
        return (
            max(self.top, other.top) - min(self.bottom, other.bottom),
            max(self.left, other.left) - min(self.right, other.right),
        )
