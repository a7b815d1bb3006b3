# SPDX-License-Identifier: GPL-3.0-or-later
"""Lifting: counting, tracks, compaction and choice on small scenes; the whole on the sample."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
from PIL import Image

from unified_lift.capture import read_capture
from unified_lift.capture.images import load_photo, scaled_view
from unified_lift.config import AUTO_LIFT, PRESETS, FeatureConfig, LiftConfig
from unified_lift.gaussians import GEOMETRY
from unified_lift.geometry import train
from unified_lift.lift import incidence as incidence_module
from unified_lift.lift.choice import take_better
from unified_lift.lift.compaction import (
    agreement,
    compact,
    dissolve,
    merge,
    revote,
    support,
)
from unified_lift.lift.features import count_codes, nearest_codes, train_features
from unified_lift.lift.incidence import Incidence, count_votes, mask_incidence
from unified_lift.lift.labels import label_map
from unified_lift.lift.objects import (
    SeenSplats,
    confidence,
    describe,
    fill_unseen,
    object_trust,
    settle,
)
from unified_lift.lift.refinement import refine
from unified_lift.lift.votes import MaskGraph, link_masks, mask_graph, split_by_votes
from unified_lift.metrics import score
from unified_lift.preparation import to_camera
from unified_lift.protocol import Cancelled, JobError, SilentReport
from unified_lift.rendering import load_engine
from unified_lift.rendering.weights import BlendWeights

SAMPLE = Path(__file__).parents[1] / "data" / "messy8"
CONFIG = LiftConfig(name_pixels=1.0)  # the scenes here are small


def scene(*views, void=(), cut=()):
    """Incidence of views; each is a list of masks, each a list of Gaussians it shows wholly.

    `cut` lists the rows of masks that the border of the picture cuts.
    """
    masks = [(view, gaussians) for view, masks in enumerate(views) for gaussians in masks]
    num = 1 + max(g for _, gaussians in masks for g in gaussians)
    mass = scipy.sparse.lil_matrix((len(masks), num), dtype=np.float32)
    for row, (_, gaussians) in enumerate(masks):
        mass[row, gaussians] = 10
    unlabelled = np.zeros((len(views), num), np.float32)
    for view, gaussian in void:
        unlabelled[view, gaussian] = 10
    views_of = np.array([view for view, _ in masks])
    return Incidence(mass.tocsr(), unlabelled, views_of, np.isin(np.arange(len(masks)), cut))


def seen(means, planes=None):
    """Splats that no view is asked about."""
    return SeenSplats(means, np.zeros(len(means), int) if planes is None else planes, [], None)


def same_partition(ids, expected):
    pairs = set(zip(np.asarray(ids).tolist(), expected, strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def random_weights(rng, num=12, width=5, height=4, entries=3):
    ids = np.concatenate([rng.permutation(num)[:entries] for _ in range(width * height)])
    shares = rng.integers(300, 21000, len(ids)).astype(np.uint16)
    indptr = np.arange(0, len(ids) + 1, entries)
    return BlendWeights(indptr, ids.astype(np.int32), shares, width, height, num)


# ---- incidence and votes


def test_incidence_sums_the_weights_over_masks():
    rng = np.random.default_rng(0)
    weights = [random_weights(rng) for _ in range(4)]
    maps = [rng.choice([0, 3, 9], (4, 5)) for _ in range(4)]
    maps[1], maps[2] = None, np.zeros((4, 5), int)
    result = mask_incidence(weights, maps)
    assert result.mask_views.tolist() == [0, 0, 3, 3]
    row = 0
    for view in (0, 3):
        dense, labels = weights[view].matrix().toarray(), maps[view].ravel()
        for label in (3, 9):
            expected = dense[labels == label].sum(0)
            np.testing.assert_allclose(result.mass[[row]].toarray()[0], expected, rtol=1e-5)
            row += 1
        np.testing.assert_allclose(result.void[view], dense[labels == 0].sum(0), rtol=1e-5)
    assert not result.void[1:3].any()  # views without masks say nothing


def test_the_border_cuts_masks_that_run_out_of_the_picture():
    labels = np.zeros((20, 20), int)
    labels[:8, 4:9] = 1  # five of its pixels at the border, 40 in all
    labels[10:15, 8:18] = 2
    labels[5:19, 19] = 3
    whole = BlendWeights(*(np.zeros(401, int), *np.zeros((2, 0), int)), 20, 20, 3)
    assert mask_incidence([whole], [labels]).mask_cut.tolist() == [True, False, True]


def test_votes_are_counted_alike_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    mass = scipy.sparse.random(30, 50, 0.2, "csr", np.float32, random_state=0)
    small = Incidence(mass, np.zeros((1, 50), np.float32), np.zeros(30, int), np.zeros(30, bool))
    entries = small.by_gaussian
    votes, weights = rng.integers(4, size=entries.nnz), rng.random(entries.nnz)
    expected = np.zeros((50, 4))
    np.add.at(expected, (np.repeat(np.arange(50), np.diff(entries.indptr)), votes), weights)
    monkeypatch.setattr(incidence_module, "MAX_CELLS", 4 * 7)
    winners, masses = count_votes(small, votes, weights, 4)
    seen = expected.max(1) > 0
    assert winners[seen].tolist() == expected[seen].argmax(1).tolist()
    assert (winners[~seen] == -1).all()
    np.testing.assert_allclose(masses, expected.max(1))


def test_containment_regards_what_a_view_sees():
    # Gaussian 2 is not seen at all in the second view: mask 0 is still whole there.
    graph = mask_graph(scene([[0, 1, 2], [3]], [[0, 1], [3]]), CONFIG)
    assert graph.contained[0, 2] == 1
    assert graph.shared[0, 1] == pytest.approx(2 / 3)
    assert graph.contained[0, 3] == 0


def test_masks_of_one_view_stay_apart_unless_others_join_them():
    views = np.array([0, 0, 1])
    contained = np.array([[1, 0, 0.9], [0, 1, 0.8], [0.9, 0.8, 1]], np.float32)
    graph = MaskGraph(scipy.sparse.csr_matrix(contained), np.ones((3, 2), np.float32))
    strict = replace(CONFIG, joined_share=0.6)
    assert same_partition(link_masks(graph, views, strict), [0, 1, 0])  # one view of two joins
    assert same_partition(link_masks(graph, views, CONFIG), [0, 0, 0])


def test_masks_that_hardly_see_the_same_gaussians_are_not_joined():
    views = np.array([0, 1])
    contained = scipy.sparse.csr_matrix(np.ones((2, 2), np.float32))
    for seen, expected in ((0.3, [0, 0]), (0.1, [0, 1])):
        shared = np.array([[1, 0.9], [seen, 1]], np.float32)
        assert same_partition(link_masks(MaskGraph(contained, shared), views, CONFIG), expected)


def test_more_tracks_than_the_memory_holds_are_refused():
    with pytest.raises(JobError, match="4 masks of all photos show 2 different things"):
        split_by_votes(scene(*[WHOLE] * 2), replace(CONFIG, max_cells=7))


def test_tracks_follow_objects_whose_ids_and_order_change():
    views = [[[0, 1], [2, 3], [4, 5]], [[4, 5], [0, 1], [2, 3]], [[2, 3], [4, 5], [0, 1]]]
    assert same_partition(split_by_votes(scene(*views), CONFIG), [0, 0, 1, 1, 2, 2])


def test_the_split_by_votes_looks_for_a_cancel():
    def check():
        raise Cancelled

    with pytest.raises(Cancelled):
        split_by_votes(scene([[0, 1]], [[0, 1]]), CONFIG, check)


def test_gaussians_outside_of_all_masks_have_no_object():
    views = [[[0, 1, 2]], [[0, 1]], [[0, 1]], [[0, 1]]]
    result = scene(*views, void=[(1, 2), (2, 2), (3, 2)])
    assert split_by_votes(result, CONFIG).tolist() == [0, 0, -1]
    assert revote(result, np.zeros(3, int), 1, CONFIG).tolist() == [0, 0, -1]


def test_no_masks_at_all_give_no_objects():
    weights = [random_weights(np.random.default_rng(0))]
    empty = mask_incidence(weights, [None])
    ids = split_by_votes(empty, CONFIG)
    assert (compact(empty, ids, CONFIG) == -1).all()
    splats = seen(np.zeros((12, 3)))
    ids, _ = settle(empty, ids, splats, CONFIG)
    records, final, trust = describe(empty, ids, splats, CONFIG)
    assert (records, final.any(), trust.any()) == ([], False, False)


# ---- compaction

WHOLE = [list(range(6)), list(range(6, 12))]
JOINED = [list(range(12))]
HALVED = [[0, 1, 2], [3, 4, 5], list(range(6, 12))]


def test_a_mask_over_two_objects_takes_neither():
    ids = np.repeat([0, 1], 6)
    assert revote(scene(WHOLE, JOINED, JOINED), ids, 3, CONFIG).tolist() == ids.tolist()


def test_masks_name_living_objects_only():
    ids, alive = np.repeat([0, 1], 6), np.array([True, False])
    assert set(revote(scene(WHOLE, JOINED), ids, 1, CONFIG, alive)) == {0}


def test_most_views_correct_a_wrong_gaussian():
    ids = np.repeat([0, 1], 6)
    ids[2] = 1
    assert same_partition(revote(scene(WHOLE, WHOLE), ids, 2, CONFIG), [0] * 6 + [1] * 6)


def test_masks_that_fit_their_object_outweigh_more_that_do_not():
    cut_off = [[0, 1, 2, 6, 7], [8, 9, 10, 11]]
    result = scene(WHOLE, WHOLE, cut_off, cut_off, cut_off)
    truth = np.array([0] * 6 + [1] * 6)
    assert revote(result, truth, 1, CONFIG)[6:8].tolist() == [0, 0]  # by their number
    assert refine(result, truth, CONFIG).tolist() == truth.tolist()


def test_pieces_that_hardly_a_view_shows_alone_are_joined_in_the_end():
    thirds = np.repeat([0, 1, 2], [3, 3, 6])
    crumbs = [[0], [1], [2], [3], [4], [5], WHOLE[1]]
    pieces = scene(WHOLE, WHOLE, HALVED, crumbs, crumbs)  # two views of five join, one shows them
    assert same_partition(merge(pieces, thirds, CONFIG), thirds.tolist())
    assert same_partition(refine(pieces, thirds, CONFIG), [0] * 6 + [1] * 6)
    apart = replace(CONFIG, piece_agreement=(0.5, 0.5))
    assert same_partition(refine(pieces, thirds, apart), thirds.tolist())


def test_masks_of_what_was_joined_count_fully_in_the_last_votes():
    """Those of two objects count half, and the last Gaussian goes with the third one until then."""
    together, apart = [[0, 1, 2, 3, 4, 5, 12], WHOLE[1]], [[0, 1, 2], [3, 4, 5], [*WHOLE[1], 12]]
    views = scene(*[together] * 3, *[apart] * 2)
    ids = np.repeat([0, 1, 2], [3, 3, 7])
    assert revote(views, ids, 9, CONFIG, by_trust=True).tolist() == ids.tolist()
    assert same_partition(refine(views, ids, CONFIG), [0] * 6 + [1] * 6 + [0])


def test_neighbours_that_most_views_show_alone_stay_two():
    thirds = np.repeat([0, 1, 2], [3, 3, 6])
    views = scene(WHOLE, WHOLE, HALVED, HALVED, HALVED)  # as often joined as above
    assert same_partition(refine(views, thirds, CONFIG), thirds.tolist())
    often = scene(*[WHOLE] * 6, *[HALVED] * 7)  # 46 %: no mistake, however often they are shown
    assert same_partition(merge(often, thirds, CONFIG), thirds.tolist())
    assert same_partition(refine(often, thirds, CONFIG), [0] * 6 + [1] * 6)


def test_geometry_divides_what_half_of_the_masks_fuse():
    fused, halves = np.zeros(12, int), np.repeat([0, 1], 6)
    undecided = scene(*[WHOLE] * 5, *[JOINED] * 4)
    assert same_partition(refine(undecided, fused, CONFIG), fused.tolist())
    assert same_partition(refine(undecided, fused, CONFIG, halves), halves.tolist())
    half_known = np.where(halves, 3, -1)  # the other thing has no shape of its own
    assert same_partition(refine(undecided, fused, CONFIG, half_known), halves.tolist())
    certain = scene(*[WHOLE] * 4, *[JOINED] * 5)
    assert same_partition(refine(certain, fused, CONFIG, halves), fused.tolist())


def test_geometry_divides_nothing_that_masks_hardly_show():
    fused, halves, crumb = np.zeros(12, int), np.repeat([0, 1], 6), np.repeat([0, 1], [11, 1])
    quarters = np.arange(12).reshape(4, 3).tolist()
    seldom = scene(*[quarters] * 5, *[JOINED] * 4)  # never one half alone
    assert same_partition(refine(seldom, fused, CONFIG, halves), fused.tolist())
    small = scene(*[[list(range(11)), [11]]] * 5, *[JOINED] * 4)
    assert same_partition(refine(small, fused, CONFIG, crumb), fused.tolist())
    apart = scene(*[[WHOLE[0]]] * 3, *[[WHOLE[1]]] * 3)  # no view shows both
    assert same_partition(refine(apart, fused, CONFIG, halves), fused.tolist())
    assert same_partition(refine(apart, fused, CONFIG, np.full(12, -1)), fused.tolist())


def test_a_shape_that_mostly_lies_elsewhere_divides_no_object():
    halves = np.repeat([0, 1], 6)
    views = scene(*[HALVED] * 5, *[WHOLE] * 4)
    inside, outside = np.repeat([0, 1, 2], [3, 3, 6]), np.repeat([-1, 0], [3, 9])
    narrow = replace(CONFIG, piece_agreement=(2.0, 2.0))
    assert len(set(refine(views, halves, narrow, inside))) == 3
    assert same_partition(refine(views, halves, narrow, outside), halves.tolist())


def test_a_part_never_goes_to_one_that_masks_hold_apart_from_it():
    shapes = np.repeat([0, 1, 2], [9, 3, 2])
    first, second, third = (np.nonzero(shapes == shape)[0].tolist() for shape in range(3))
    views = scene(*[[first, second]] * 6, *[[second, third]] * 6)  # first and third never meet
    result = refine(views, np.zeros(14, int), CONFIG, shapes)
    assert same_partition(result, [0] * 9 + [1] * 3 + [0] * 2)


def test_there_is_nothing_to_refine_without_objects():
    assert refine(scene(WHOLE), np.full(12, -1), CONFIG).tolist() == [-1] * 12


def test_what_masks_show_as_one_is_merged_and_neighbours_are_not():
    thirds = np.repeat([0, 1, 2], [3, 3, 6])
    views = scene(WHOLE, WHOLE, WHOLE, HALVED)
    assert agreement(views, thirds, 3, CONFIG)[0, 1] == pytest.approx(0.75)
    assert agreement(views, thirds, 3, CONFIG)[0, 2] == 0
    assert same_partition(merge(views, thirds, CONFIG), [0] * 6 + [1] * 6)
    mostly_halved = scene(WHOLE, HALVED, HALVED, HALVED)
    assert same_partition(merge(mostly_halved, thirds, CONFIG), thirds.tolist())


def test_one_common_view_is_too_few_to_merge():
    ids = np.repeat([0, 1], 6)
    views = scene(JOINED, [WHOLE[0]], [WHOLE[1]])
    assert agreement(views, ids, 2, CONFIG)[0, 1] == -1
    assert same_partition(merge(views, ids, CONFIG), ids.tolist())


def test_objects_that_no_mask_shows_dissolve_into_those_around():
    fragments = np.array([0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2])
    views = scene(*[WHOLE] * 5)
    share, shown = support(views, fragments, 3, CONFIG)
    assert share.tolist() == [1, 0, 1]
    assert shown.tolist() == [5, 0, 5]
    assert same_partition(dissolve(views, fragments, CONFIG), [0] * 6 + [1] * 6)


def test_an_object_that_most_masks_split_stays_unless_masks_join_it_to_another():
    ids = np.repeat([0, 1], 6)
    pieces = [[0, 1], [2, 3], [4, 5], WHOLE[1]]
    views = scene(*[pieces] * 15, WHOLE, WHOLE)
    assert support(views, ids, 2, CONFIG)[0][0] < CONFIG.dissolve_support
    assert same_partition(dissolve(views, ids, CONFIG), ids.tolist())
    often_joined = scene(*[pieces] * 9, *[JOINED] * 6, WHOLE, WHOLE)
    assert len(np.unique(dissolve(often_joined, ids, CONFIG))) == 1


# ---- choice


def test_a_split_is_taken_over_where_masks_show_two_objects():
    fused, apart = np.zeros(12, int), np.repeat([0, 1], 6)
    assert same_partition(take_better(scene(WHOLE, WHOLE), fused, apart, CONFIG), apart.tolist())
    assert same_partition(take_better(scene(WHOLE, WHOLE), apart, fused, CONFIG), apart.tolist())


def test_fragments_are_joined_only_if_masks_join_them():
    halves, whole = np.repeat([0, 1, 2], [3, 3, 6]), np.repeat([0, 1], 6)
    together = scene(WHOLE, WHOLE, WHOLE, HALVED)
    assert same_partition(take_better(together, halves, whole, CONFIG), whole.tolist())
    # A well shown object and crumbs far from it, fused by a shared code: no mask joins them.
    far = scene(*[[list(range(20)), [20], [21], [22]] for _ in range(3)])
    parts, one = np.repeat([0, 1], [20, 3]), np.zeros(23, int)
    strict = replace(CONFIG, object_worth=0.5)
    assert same_partition(take_better(far, parts, one, strict), parts.tolist())
    anyway = replace(strict, join_agreement=0.0)
    assert same_partition(take_better(far, parts, one, anyway), one.tolist())


def test_where_masks_show_nothing_whole_joining_is_no_gain_in_itself():
    apart, fused = np.repeat([0, 1, 2], [6, 6, 12]), np.repeat([0, 1], 12)
    crumbs = [[i] for i in range(12, 24)]
    pieces = [[2 * i, 2 * i + 1] for i in range(6)] + crumbs
    joined = [list(range(12)), *crumbs]
    views = scene(*[pieces] * 3, *[joined] * 2)  # scores of .4 each, .5 for both together
    assert same_partition(take_better(views, apart, fused, CONFIG), apart.tolist())
    views = scene(pieces, *[joined] * 4)
    assert same_partition(take_better(views, apart, fused, CONFIG), fused.tolist())


def test_what_is_not_better_stays_to_the_last_gaussian():
    split, other = np.repeat([0, 1], 6), np.repeat([0, 1], 6)
    split[5], other[4:6] = 1, 1  # the same objects with other edges, and neither edge is right
    assert take_better(scene(WHOLE, WHOLE), split, other, CONFIG).tolist() == split.tolist()


def test_an_empty_split_changes_nothing():
    ids, none = np.repeat([0, 1], 6), np.full(12, -1)
    views = scene(WHOLE, WHOLE)
    assert take_better(views, ids, none, CONFIG).tolist() == ids.tolist()
    assert take_better(views, none, ids, CONFIG).tolist() == none.tolist()


# ---- label maps and objects


def test_a_label_map_is_the_largest_share_of_each_pixel():
    rng = np.random.default_rng(0)
    weights, ids = random_weights(rng), rng.choice([0, 2, 700], 12)
    expected = []
    for row in weights.matrix().toarray():
        shares = {label: row[ids == label].sum() for label in np.unique(ids)}
        best = max(shares, key=shares.get)
        expected.append(best if row.sum() >= 0.5 else 0)
    labels = label_map(weights, ids)
    assert labels.ravel().tolist() == expected
    assert {0, 2, 700} == set(expected)


def test_objects_are_things_first_then_by_mass():
    views = scene(*[[[0], [1, 2], [3, 4, 5], [6, 7, 8, 9]]] * 2)
    ids = np.repeat([0, 1, 2, 3], [1, 2, 3, 4])
    planes = np.repeat([0, 0, 0, 1], [1, 2, 3, 4])
    means = np.arange(30, dtype=np.float32).reshape(10, 3)
    records, final, trust = describe(views, ids, seen(means, planes), CONFIG)
    assert [r.name for r in records] == ["Object 001", "Object 002", "Object 003", "Surface 001"]
    assert [r.id for r in records] == [1, 2, 3, 4]
    assert [r.count for r in records] == [3, 2, 1, 4]
    assert final.tolist() == [3, 2, 2, 1, 1, 1, 4, 4, 4, 4]
    assert records[0].bounds == ((9, 10, 11), (15, 16, 17))
    assert all(r.score == 1 for r in records) and (trust > 0.95).all()
    assert len({r.color for r in records}) == 4


def test_things_behind_the_scene_that_borders_cut_stay_unassigned():
    config = replace(AUTO_LIFT, name_pixels=1.0)
    behind = [[0, 1], [2, 3]]
    few = [behind if view < 2 else [[0, 1]] for view in range(12)]
    shown = [len(masks) for masks in few]
    rows = np.cumsum(shown)[:2] - 1  # of the masks that show the second thing
    ids, means = np.array([0, 0, 1, 1]), np.zeros((4, 3), np.float32)

    def kept(cut, plane=0):
        return described(scene(*few, cut=cut), np.array([0, 0, plane, plane]))

    def described(views, planes):
        splats = seen(means, planes)
        records, final, _ = describe(views, settle(views, ids, splats, config)[0], splats, config)
        return [r.kind for r in records], final.tolist()

    assert kept(rows) == (["thing"], [1, 1, 0, 0])
    assert kept(rows, plane=1) == (["thing", "surface"], [1, 1, 2, 2])  # walls are objects
    often = scene(*[behind] * 12, cut=np.arange(24))  # a sofa too large for any photo
    assert described(often, np.zeros(4))[1] == [1, 1, 2, 2]


def test_hidden_gaussians_take_the_id_of_a_close_neighbour():
    means = np.zeros((8, 3), np.float32)
    means[:, 0] = [0, 1, 2, 3, 4, 5, 2.5, 90]
    mass = scipy.sparse.csr_matrix(np.diag([10.0] * 6 + [0, 0]).astype(np.float32))
    views = Incidence(mass, np.zeros((1, 8), np.float32), np.zeros(8, int), np.zeros(8, bool))
    ids = np.array([0, 0, 0, 0, 1, 1, -1, -1])
    assert fill_unseen(views, ids, means, CONFIG).tolist() == [0, 0, 0, 0, 1, 1, 0, -1]


def test_one_labelled_splat_has_no_neighbours_to_fill():
    views = scene([[0, 3]])  # nobody sees 1 and 2
    means = np.array([[0, 0, 0], [0.1, 0, 0], [1e6, 0, 0], [1, 0, 0]], np.float32)
    assert fill_unseen(views, np.array([0, -1, -1, -1]), means, CONFIG).tolist() == [0, -1, -1, -1]


def test_whole_objects_that_many_views_show_are_trusted_most():
    views = scene(WHOLE, WHOLE, WHOLE, [WHOLE[0]])
    fragments = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2])
    assert object_trust(views, fragments, 3, CONFIG).tolist() == [1, 0, 0.75]


def test_confidence_falls_where_masks_disagree_and_where_little_is_seen():
    views = scene(WHOLE, WHOLE, HALVED)
    views.mass.data[:] = np.where(views.mass.indices == 5, 0.1, views.mass.data)
    ids = np.repeat([0, 1], 6)
    ids[6] = 0  # lies in masks of the second object
    trust = confidence(views, ids, CONFIG)
    assert trust[0] == pytest.approx(30 / 31)
    assert trust[5] == pytest.approx(0.3 / 1.3)
    assert trust[6] == 0


# ---- the sample, with geometry trained at a small size


@pytest.fixture(scope="module")
def sample():
    """Splats of a few seconds' training, their blend weights, `paper` masks and ground truth."""
    capture = read_capture(SAMPLE)
    config = replace(PRESETS["draft"], longest_side=160, iterations=800, max_gaussians=10_000)
    views, tests = (
        [scaled_view(view, config.longest_side) for view in part]
        for part in (capture.train_views, capture.test_views)
    )
    engine, report = load_engine("cpu"), SilentReport()
    cameras = [to_camera(view) for view in views]
    photos = [load_photo(view) for view in views]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    points = capture.points, capture.point_colors
    gaussians = train(photos, cameras, *points, config, engine, 0, report)
    torch.set_num_threads(threads)

    def weights(some):
        geometry = [gaussians[name] for name in GEOMETRY]
        return [engine.blend_weights(*geometry, to_camera(view)) for view in some]

    def labels(folder, some):
        paths = [SAMPLE / folder / f"{view.name}.png" for view in some]
        size = views[0].width, views[0].height
        images = [Image.open(path).resize(size, Image.Resampling.NEAREST) for path in paths]
        return [np.array(image).astype(np.int32) for image in images]

    blend, masks = weights(views), labels("masks/paper", views)
    return SimpleNamespace(
        weights=blend,
        masks=masks,
        incidence=mask_incidence(blend, masks),
        test_weights=weights(tests),
        truth=labels("gt/ids", tests),
        meta=json.loads((SAMPLE / "gt" / "meta.json").read_text()),
    )


def scores(sample, object_ids):
    predictions = [label_map(weights, object_ids + 1) for weights in sample.test_weights]
    return score(predictions, sample.truth, sample.meta["things"], sample.meta["stuff"])["things"]


@pytest.fixture(scope="module")
def learned(sample):
    tracks = split_by_votes(sample.incidence, LiftConfig())
    codes = count_codes(tracks, sample.incidence, LiftConfig())
    num = sample.incidence.num_gaussians
    features = train_features(
        sample.weights, sample.masks, num, codes, FeatureConfig(), 0, SilentReport()
    )
    return nearest_codes(*features), compact(sample.incidence, tracks, LiftConfig())


@pytest.mark.slow
def test_votes_alone_find_the_eight_objects(sample, learned):
    result = scores(sample, learned[1])
    assert (result["TP"], result["FP"]) == (8, 0)
    assert result["PQ"] > 0.8


@pytest.mark.slow
def test_the_codebook_finds_the_objects_before_compaction(sample, learned):
    assert scores(sample, learned[0])["TP"] >= 7


@pytest.mark.slow
def test_compaction_leaves_no_false_object_of_the_surplus_codes(sample, learned):
    codes, votes = learned
    compacted = compact(sample.incidence, codes, LiftConfig())
    before, after = scores(sample, codes), scores(sample, compacted)
    assert (after["TP"], after["FP"]) == (8, 0)
    assert after["n_pred"] < before["n_pred"]
    chosen = scores(sample, take_better(sample.incidence, votes, compacted, LiftConfig()))
    assert (chosen["TP"], chosen["FP"]) == (8, 0)
