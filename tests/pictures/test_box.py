from lenet_jax.pictures.box import Box

BOX = Box(top=2, left=3, bottom=6, right=11)


def test_a_box_knows_its_sides():
    assert (BOX.height, BOX.width, Box(0, 0, 3, 4).size) == (4, 8, 5)


def test_a_box_is_an_index():
    cells = {(row, column) for row in range(20) for column in range(20)}
    rows, columns = BOX.slices
    inside = {(r, c) for r, c in cells if r in range(20)[rows] and c in range(20)[columns]}
    assert len(inside) == BOX.height * BOX.width
    assert (min(inside), max(inside)) == ((2, 3), (5, 10))


def test_a_box_moves_and_grows():
    assert BOX.shifted(1, -1) == (3, 2, 7, 10)
    assert BOX.seen_from(BOX) == (0, 0, 4, 8)
    assert BOX.scaled(2) == (4, 6, 12, 22)
    assert BOX.grown(1) == (1, 2, 7, 12)


def test_two_boxes_have_a_union_and_an_intersection():
    other = Box(0, 5, 4, 20)
    assert BOX.union(other) == other.union(BOX) == (0, 3, 6, 20)
    assert BOX.intersection(other) == other.intersection(BOX) == (2, 5, 4, 11)


def test_a_box_contains_what_has_margins_on_all_sides():
    assert BOX.margins(Box(3, 5, 5, 7)) == (1, 2, 1, 4)
    assert BOX.contains(BOX)
    for outside in (Box(1, 3, 6, 11), Box(2, 2, 6, 11), Box(2, 3, 7, 11), Box(2, 3, 6, 12)):
        assert not BOX.contains(outside)
        assert outside.contains(BOX)


def test_gaps_are_distances_and_negative_where_boxes_overlap():
    assert BOX.gaps(Box(9, 1, 10, 5)) == (3, -2)
    assert BOX.gaps(Box(0, 14, 3, 15)) == (-1, 3)
