# SPDX-License-Identifier: GPL-3.0-or-later
"""Label maps from photos and splats: a box on a table, depth by depth, crease by crease."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.color import rgb2lab

from unified_lift.config import SurfaceMaskConfig
from unified_lift.masks import depth as depth_module
from unified_lift.masks import fusion
from unified_lift.masks.depth import DepthView, depth_map, ray_directions
from unified_lift.masks.flat_things import PlaneGrid, find_things, flat_things, without_things
from unified_lift.masks.fusion import Surface, candidate_voxels, fuse, voxel_size
from unified_lift.masks.labelling import fill_gaps, label_photo, snap
from unified_lift.masks.linkage import Contacts, average_linkage, touching
from unified_lift.masks.merging import merge_alike
from unified_lift.masks.planes import Plane, SurfacePlanes, find_surface_planes
from unified_lift.masks.regions import grow, grow_alike, planes_below, segment, supervoxels
from unified_lift.masks.solids import find_exits, opposite_sides
from unified_lift.masks.surfaces import surface_label_maps
from unified_lift.masks.voxels import (
    cell_centers,
    cell_keys,
    dilate,
    neighbour_pairs,
    unique_keys,
)
from unified_lift.protocol import Cancelled, JobError, SilentReport
from unified_lift.rendering import Camera, load_engine
from unified_lift.rendering.weights import BlendWeights

WIDTH, HEIGHT, FOCAL = 96, 72, 90.0
# The photos are tiny: the box is a dozen voxels high, and the checks are laid out for this size.
CONFIG = SurfaceMaskConfig(reference_side=WIDTH, flat_min_area=30, voxel_pixels=(2.0,))
(PIXELS,) = CONFIG.voxel_pixels
BOX, TABLE = 0.4, 1.5  # half width of the box, as high as wide; radius of the table
NOTHING, ON_TABLE, ON_BOX = 0, 1, 2


class CancelAt(SilentReport):
    def __init__(self, steps):
        self.left = steps

    def progress(self, step, total, message=""):
        self.left -= 1
        if self.left < 0:
            raise Cancelled


def look_at_origin(angle, height=2.0, distance=3.0):
    """World-to-camera matrix (4, 4) of a camera that looks at the box."""
    eye = np.array([distance * np.cos(angle), distance * np.sin(angle), height])
    forward = -eye / np.linalg.norm(eye)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rotation, -rotation @ eye
    return viewmat


def trace(viewmat):
    """Exact view of the box on the table: DepthView and what each pixel shows (H, W)."""
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    focal, center = np.array([FOCAL, FOCAL]), np.array([WIDTH / 2, HEIGHT / 2])
    rays = ray_directions(focal, center, WIDTH, HEIGHT) @ rotation  # z = 1, so t is depth
    eye = -rotation.T @ translation
    with np.errstate(divide="ignore", invalid="ignore"):
        table = -eye[2] / rays[..., 2]
        far = np.hypot(*np.moveaxis((eye + table[..., None] * rays)[..., :2], -1, 0)) > TABLE
        table[(table <= 0) | far] = np.inf
        low = (np.array([-BOX, -BOX, 0]) - eye) / rays
        high = (np.array([BOX, BOX, 2 * BOX]) - eye) / rays
    enter, leave = np.minimum(low, high).max(-1), np.maximum(low, high).min(-1)
    box = np.where(enter < leave, enter, np.inf)
    depth = np.minimum(table, box)
    truth = np.where(np.isinf(depth), NOTHING, np.where(box < table, ON_BOX, ON_TABLE))
    depth = np.where(np.isinf(depth), 0, depth).astype(np.float32)
    arrays = (x.astype(np.float32) for x in (rotation, translation, focal, center))
    return DepthView(*arrays, depth), truth


@pytest.fixture(scope="module")
def scene():
    """Twelve exact views: photos, DepthViews, truths."""
    views, truths = zip(*(trace(look_at_origin(angle)) for angle in np.arange(12) * np.pi / 6))
    colors = np.array([[20, 20, 20], [150, 120, 90], [60, 90, 160]], np.uint8)
    return [colors[truth] for truth in truths], list(views), list(truths)


def lab(photos):
    return [rgb2lab(photo).astype(np.float32) for photo in photos]


@pytest.fixture(scope="module")
def surface(scene):
    return fuse(lab(scene[0]), scene[1], PIXELS, CONFIG, SilentReport())


# ---- voxels and pairs


@pytest.mark.parametrize("num", [0, 1, 500])
def test_keys_come_sorted_and_once(num):
    positions = np.random.default_rng(0).normal(size=(num, 3))
    keys = np.tile(cell_keys(positions, 0.3), 2)
    assert unique_keys(keys).tolist() == np.unique(keys).tolist()
    grown = dilate(unique_keys(keys))
    steps = itertools.product((-0.3, 0, 0.3), repeat=3)
    around = [cell_keys(cell_centers(keys, 0.3) + np.array(step), 0.3) for step in steps]
    assert grown.tolist() == np.unique(np.concatenate(around)).tolist()


@pytest.mark.parametrize("num", [0, 300])
def test_nodes_that_touch_are_pairs_once_with_their_count(num):
    pairs = np.random.default_rng(0).integers(5, size=(num, 2)) * 1_000_000
    different = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    expected, counts = np.unique(different, axis=0, return_counts=True)
    found, times = touching(pairs)
    assert (found.tolist(), times.tolist()) == (expected.tolist(), counts.tolist())


# ---- depth


def splats(means, quats, scales):
    num = len(means)
    return {
        "means": torch.tensor(means, dtype=torch.float32),
        "quats": torch.tensor(quats, dtype=torch.float32),
        "scales": torch.tensor(scales, dtype=torch.float32).log(),
        "opacities": torch.full((num,), 5.0),
        "sh0": torch.zeros(num, 1, 3),
        "shN": torch.zeros(num, 0, 3),
    }


def one_pixel(weights):
    """Blend weights of a single pixel that shows Gaussians 0, 1, 2... with these weights."""
    num = len(weights)
    fixed = np.round(np.array(weights) * 65535).astype(np.uint16)
    return BlendWeights(np.array([0, num]), np.arange(num, dtype=np.int32), fixed, 1, 1, num)


def pixel_depth(depths, weights):
    """Depth of a pixel with a row of small spheres on its ray."""
    row = splats(
        [[0, 0, z] for z in depths], [[1, 0, 0, 0]] * len(depths), [[0.01] * 3] * len(depths)
    )
    K = torch.tensor([[10.0, 0, 0.5], [0, 10, 0.5], [0, 0, 1]])
    camera = Camera(torch.eye(4), K, 1, 1)
    return float(depth_map(row, one_pixel(weights), camera, CONFIG)[0, 0])


def test_depth_is_the_mean_of_the_splats_near_the_median_one():
    assert pixel_depth([2.0, 2.02], [0.4, 0.4]) == pytest.approx(2.01, abs=1e-3)


def test_a_veil_in_front_and_a_glow_behind_do_not_move_the_depth():
    assert pixel_depth([1.0, 2.0, 5.0], [0.2, 0.6, 0.2]) == pytest.approx(2, abs=1e-3)


def test_where_half_shines_through_there_is_no_depth():
    assert pixel_depth([2.0], [0.45]) == 0
    assert pixel_depth([2.0], [0.55]) == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("rays", [7, 10_000])
def test_depth_of_a_slanted_disc_is_that_of_its_plane(rays, monkeypatch):
    """A flat disc, turned by 40 degrees about x, in the middle of a rendered view."""
    monkeypatch.setattr(depth_module, "RAYS_AT_ONCE", rays)
    turn = np.radians(40)
    disc = splats([[0, 0, 3]], [[np.cos(turn / 2), np.sin(turn / 2), 0, 0]], [[0.5, 0.5, 1e-3]])
    K = torch.tensor([[40.0, 0, 12], [0, 40, 12], [0, 0, 1]])
    camera = Camera(torch.eye(4), K, 24, 24)
    engine = load_engine("reference")
    names = ("means", "quats", "scales", "opacities")
    weights = engine.blend_weights(*(disc[name] for name in names), camera)
    depth = depth_map(disc, weights, camera, CONFIG)
    slope = ((np.arange(24) + 0.5 - 12) / 40)[:, None]
    plane = 3 / (1 - np.tan(turn) * slope) + np.zeros((1, 24))
    seen = depth > 0
    assert seen.sum() > 100
    assert np.abs(depth - plane)[seen].max() < 0.01


def test_points_of_pixels_project_back_onto_them(scene):
    view = scene[1][3]
    seen = view.depth.ravel() > 0
    indices, pixels, depth = view.project(view.points().reshape(-1, 3)[seen])
    assert len(indices) == seen.sum()
    assert np.array_equal(pixels, np.nonzero(seen)[0])
    assert depth == pytest.approx(view.depth.ravel()[seen], rel=1e-5)


# ---- voxels and surface


def test_neighbours_are_cells_that_touch():
    cells = np.array([[0, 0, 0], [1, 1, 1], [-1, 0, 0], [2, 0, 0], [5, 5, 5]]) + 0.5
    keys = np.sort(cell_keys(cells, 1.0))
    order = [list(cell_keys(cells, 1.0)).index(key) for key in keys]
    pairs = {frozenset((order[a], order[b])) for a, b in neighbour_pairs(keys)}
    assert pairs == {frozenset(pair) for pair in ((0, 1), (0, 2), (1, 3))}


def test_dilation_adds_the_26_neighbours():
    around = dilate(cell_keys(np.array([[0.5, 0.5, 0.5]]), 1.0))
    offsets = np.stack(np.meshgrid(*[[-0.5, 0.5, 1.5]] * 3), -1).reshape(-1, 3)
    assert np.array_equal(around, np.sort(cell_keys(offsets, 1.0)))


def test_the_surface_is_where_the_things_are(surface):
    x, y, z = np.abs(surface.positions).T
    to_table = np.where(np.hypot(x, y) < TABLE + surface.size, z, np.inf)
    to_side = np.abs(np.maximum(x, y) - BOX) + np.maximum(z - 2 * BOX, 0)
    to_lid = np.abs(z - 2 * BOX) + np.maximum(np.maximum(x, y) - BOX, 0)
    distance = np.minimum(np.minimum(to_table, to_side), to_lid)
    assert np.percentile(distance, 95) < surface.size
    assert np.median(distance) < surface.size / 4


def test_the_surface_is_the_same_in_parts(scene, surface, monkeypatch):
    monkeypatch.setattr(fusion, "VOXELS_AT_ONCE", 500)
    parts = fuse(lab(scene[0]), scene[1], PIXELS, CONFIG, SilentReport())
    assert len(parts.positions) > 1000
    for name in ("positions", "normals", "colors", "neighbours", "mass"):
        assert np.array_equal(getattr(parts, name), getattr(surface, name)), name


def test_where_position_alone_counts_the_nearest_centre_is_the_best():
    positions = np.random.default_rng(0).uniform(0, 9, (2000, 3))
    among_many = supervoxels(np.append(positions, np.zeros((2000, 1)), 1), CONFIG)
    assert np.array_equal(supervoxels(positions, CONFIG), among_many)


def test_normals_point_to_the_cameras(surface):
    x, y, z = surface.positions.T
    table = (np.abs(z) < 0.02) & (np.hypot(x, y) > 0.9) & (np.hypot(x, y) < 1.3)
    assert np.median(surface.normals[table, 2]) > 0.99


def test_too_many_voxels_make_them_larger(scene):
    wished = voxel_size(scene[1], PIXELS, CONFIG)
    size, keys = candidate_voxels(scene[1], wished, CONFIG)
    assert size == wished
    few = replace(CONFIG, max_voxels=300)
    coarse, fewer = candidate_voxels(scene[1], wished, few)
    assert coarse > wished
    assert len(fewer) <= 27 * few.max_voxels < len(keys)


def test_a_scene_as_wide_as_a_town_keeps_its_number_of_voxels(scene):
    """Points thousands of times farther than the box neither fail nor eat the memory."""
    photos, views, _ = scene
    far = [replace(view, depth=np.where(view.depth > 0, view.depth, 5e4)) for view in views]
    whole = fuse(lab(photos), far, PIXELS, replace(CONFIG, max_voxels=20_000), SilentReport())
    assert len(whole.positions) < 27 * 20_000


# ---- planes and regions


def test_the_table_is_a_plane_and_the_box_is_not(surface):
    planes, ids = find_surface_planes(surface, CONFIG)
    assert planes[0].normal == pytest.approx([0, 0, 1], abs=0.02)
    x, y, z = surface.positions.T
    table = (np.abs(z) < surface.size) & (np.hypot(x, y) > BOX * 2)
    assert (ids[table] == 1).mean() > 0.95
    assert not (ids[z > BOX] == 1).any()


def test_the_large_faces_of_a_box_are_no_planes(surface):
    faces = replace(CONFIG, plane_min_mass=0.005, max_planes=8)
    planes, ids = find_surface_planes(surface, faces)
    assert [plane.normal.round(1).tolist() for plane in planes] == [[0, 0, 1]]
    assert not ids[surface.positions[:, 2] > 3 * surface.size].any()


def test_box_and_table_become_one_region_each(scene, surface):
    photos, _, truths = scene
    labels, planes = label_scene(photos, surface)
    table, box = majority(labels, truths, ON_TABLE), majority(labels, truths, ON_BOX)
    assert table in planes and box not in planes and box != NOTHING
    for value, truth in ((table, ON_TABLE), (box, ON_BOX)):
        assert iou(labels, value, truths, truth) > 0.8


def box_faces(surface):
    """Region of each voxel: faces of the box towards +x (0) and -x (1), the rest (-1)."""
    x, _, z = surface.positions.T
    high = z > 3 * surface.size
    return np.where(high & (x > 0.9 * BOX), 0, np.where(high & (x < -0.9 * BOX), 1, -1))


def test_rays_into_a_box_leave_it_on_its_other_side(surface):
    faces = box_faces(surface)
    pairs, share = opposite_sides(*find_exits(surface, np.nonzero(faces >= 0)[0], CONFIG), faces, 2)
    assert pairs.tolist() == [[0, 1]]
    assert share[0] > 0.7
    few = replace(CONFIG, solid_rays=50)
    starts, exits = find_exits(surface, np.nonzero(faces >= 0)[0], few)
    assert 25 <= len(starts) <= 50
    assert opposite_sides(starts, exits, faces, 2)[1] == pytest.approx(share, abs=0.2)


def test_a_ray_that_meets_the_front_of_something_was_outside():
    places = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), -1).reshape(-1, 2)
    walls = [np.insert(places, 0, x, axis=1) for x in (0, 10, 20)]  # front, front, back
    normals = np.repeat([[-1.0, 0, 0], [-1.0, 0, 0], [1.0, 0, 0]], 100, axis=0)
    nothing = np.empty((0, 2), np.int32)
    surface = Surface(1.0, np.concatenate(walls), normals, normals, nothing, [], np.ones(300))
    starts, exits = find_exits(surface, np.arange(300), CONFIG)
    pairs, share = opposite_sides(starts, exits, np.repeat([0, 1, 2], 100), 3)
    assert pairs.tolist() == [[1, 2]]
    assert share.tolist() == [1.0]


@pytest.mark.parametrize("solid_share, num", [(CONFIG.solid_share, 1), (2.0, 2)])
def test_sides_that_no_surface_connects_are_one_thing(scene, surface, solid_share, num):
    faces = box_faces(surface)
    kept = (faces >= 0) | (surface.positions[:, 2] < surface.size)
    number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
    gaps = replace(
        surface,
        positions=surface.positions[kept],
        normals=surface.normals[kept],
        colors=surface.colors[kept],
        neighbours=number[surface.neighbours[kept[surface.neighbours].all(1)]],
        pixel_voxels=[number[voxels] for voxels in surface.pixel_voxels],
        mass=surface.mass[kept],
    )
    planes, ids = find_surface_planes(surface, CONFIG)
    regions, _ = segment(gaps, planes, ids[kept], replace(CONFIG, solid_share=solid_share))
    sides = [np.bincount(regions[faces[kept] == side]).argmax() for side in (0, 1)]
    assert len(set(sides)) == num and 0 not in sides


def label_scene(photos, surface, config=CONFIG):
    planes, ids = find_surface_planes(surface, config)
    regions, plane_regions = segment(surface, planes, ids, config)
    maps = [
        label_photo(photo, voxels, np.zeros_like(voxels), regions, plane_regions, config)[0]
        for photo, voxels in zip(photos, surface.pixel_voxels)
    ]
    return np.stack(maps), plane_regions


def majority(labels, truths, value):
    return np.bincount(labels[np.stack(truths) == value]).argmax()


def iou(labels, label, truths, truth):
    a, b = labels == label, np.stack(truths) == truth
    return (a & b).sum() / (a | b).sum()


def test_without_a_plane_things_are_still_found(scene, surface):
    """The same scene where nothing is large enough to be a plane."""
    photos, _, truths = scene
    labels, planes = label_scene(photos, surface, replace(CONFIG, plane_min_mass=1.1))
    assert len(planes) == 0
    box = majority(labels, truths, ON_BOX)
    assert box not in (NOTHING, majority(labels, truths, ON_TABLE))
    assert iou(labels, box, truths, ON_BOX) > 0.8


@pytest.mark.parametrize("num", [2, 3, 5])
def test_few_views_suffice(scene, num):
    photos, views, truths = (values[:num] for values in scene)
    labels, _ = label_scene(photos, fuse(lab(photos), views, PIXELS, CONFIG, SilentReport()))
    box = majority(labels, truths, ON_BOX)
    assert box not in (NOTHING, majority(labels, truths, ON_TABLE))


FREE = np.zeros(14, np.int64)  # planes of nodes, or planes that they are not joined to


def test_a_leak_does_not_join_two_objects():
    """Two squares of nodes; one short contact between them is good, the long ones are bad."""
    pairs = np.array([[0, 1], [2, 3], [0, 2], [1, 3]])
    contacts = Contacts(pairs, np.array([9.0, 9, 1, 9]), np.array([0.8, 0.8, 0.9, -0.5]))
    for affinity in ([0.8, 0.8, -0.1, -0.5], [0.95, 0.95, 0.9, -0.5]):
        changed = replace(contacts, affinity=np.array(affinity))
        clusters = average_linkage(4, changed, FREE[:4], FREE[:4])
        assert clusters[0] == clusters[1] != clusters[2] == clusters[3]


@pytest.mark.parametrize("affinity, red, num", [(0.15, 0, 1), (0.15, 50, 2), (0.5, 50, 1)])
def test_where_colours_differ_a_contact_has_to_be_smooth(affinity, red, num):
    colors = np.array([[50.0, 0, 0]] * 10 + [[50.0, red, 0]] * 10)
    nodes = np.repeat([0, 1], 10)
    surface = Surface(1.0, colors, colors, colors, None, [], np.ones(20))
    contacts = Contacts(np.array([[0, 1]]), np.array([9.0]), np.array([affinity]))
    on_no_plane = np.zeros(2, np.int32), FREE[:2]
    regions = grow_alike(surface, nodes, contacts, *on_no_plane, CONFIG)
    assert len(np.unique(regions)) == num


@pytest.mark.parametrize("plane_of_node, stands_on", [([1, 0, 2], [0] * 3), ([1, 0, 0], [0, 0, 1])])
def test_two_planes_and_what_stands_on_one_are_never_joined(plane_of_node, stands_on):
    contacts = Contacts(np.array([[0, 1], [1, 2]]), np.ones(2), np.array([0.9, 0.8]))
    clusters = grow(contacts, np.array(plane_of_node), np.array(stands_on))
    assert clusters[0] == clusters[1] != clusters[2]


@pytest.mark.parametrize(
    "floor, above, high, expected",
    [
        (100, 40, 8.0, [0, 0, 1, 1]),  # a thing of two nodes
        (100, 40, 5.0, [0, 0, 0, 0]),  # a bump
        (100, 10, 8.0, [0, 0, 0, 0]),  # noise
        (8, 60, 8.0, [0, 0, 0, 0]),  # the plane is a face of the thing
    ],
)
def test_what_stands_on_a_large_plane_is_no_part_of_it(floor, above, high, expected):
    counts = [floor, 4, above // 2, above // 2]
    nodes = np.repeat(np.arange(4), counts)
    heights = np.array([0.0, 3, high, high + 1])
    positions = np.pad(heights[:, None], ((0, 0), (2, 0)))
    voxels = Surface(1.0, positions[nodes], None, None, None, [], np.ones(len(nodes)))
    planes = [Plane(np.array([0.0, 0, 1]), np.zeros(3), 0.1)]
    contacts = Contacts(np.array([[0, 1], [1, 2], [2, 3]]), np.ones(3), np.full(3, 0.9))
    on_plane = (nodes == 0).astype(np.int32)
    stands_on = planes_below(voxels, planes, on_plane, nodes, positions, contacts, CONFIG)
    assert stands_on.tolist() == expected


@pytest.mark.parametrize("height, low, high", [(1e9, 0.7, 1.0), (CONFIG.standing_height, 0, 0.05)])
def test_a_box_whose_foot_is_blurred_stays_apart_from_its_table(surface, height, low, high):
    """Without creases and colours only its height tells the box from the table."""
    config = replace(CONFIG, standing_height=height, crease_degrees=1e9)
    grey = replace(surface, colors=np.full_like(surface.colors, 50))
    planes, ids = find_surface_planes(grey, config)
    regions, plane_regions = segment(grey, planes, ids, config)
    side = box_faces(surface) == 0
    assert low <= np.isin(regions[side], plane_regions).mean() <= high


def slow_linkage(num, contacts, planes, cannot_link):
    """Average linkage as defined: recompute everything, join the best pair, repeat."""
    clusters = np.arange(num)

    def bits(values, cluster):
        return np.bitwise_or.reduce(values[clusters == cluster])

    while True:
        joined = contacts.joined(clusters)
        for row in np.argsort(-joined.affinity):
            pair = joined.pairs[row]
            apart = [bits(planes, a) & bits(cannot_link, b) for a, b in (pair, pair[::-1])]
            if joined.affinity[row] > 0 and not any(apart):
                clusters[clusters == pair[1]] = pair[0]
                break
        else:
            return clusters


@pytest.mark.parametrize("seed", range(20))
def test_linkage_agrees_with_its_definition(seed):
    rng = np.random.default_rng(seed)
    pairs = np.stack(np.triu_indices(14, 1), 1)[rng.random(91) < 0.4]
    contacts = Contacts(pairs, rng.uniform(1, 9, len(pairs)), rng.uniform(-1, 1, len(pairs)))
    bits = (np.where(rng.random(14) < 0.4, rng.integers(1, 4, 14), 0) for _ in range(2))
    arguments = 14, contacts, *bits
    fast, slow = average_linkage(*arguments), slow_linkage(*arguments)
    assert np.array_equal(fast[:, None] == fast, slow[:, None] == slow)


# ---- labels


def test_gaps_are_filled_as_far_as_the_reach():
    labels = np.zeros((1, 12), np.int32)
    labels[0, 0] = 7
    assert fill_gaps(labels, 3.0).tolist() == [[7] * 4 + [0] * 8]


def paper_on_a_plane(colors):
    photo = np.full((60, 80, 3), (150, 120, 90), np.uint8)
    for (top, left), color in colors.items():
        photo[top : top + 20, left : left + 24] = color
    return photo


def test_paper_on_a_plane_is_a_thing():
    photo = paper_on_a_plane({(20, 30): (240, 240, 240)})
    things = find_things(photo, np.ones((60, 80), bool), CONFIG)
    paper = photo[..., 0] == 240
    assert set(np.unique(things)) == {0, 1}
    assert (things[paper] == 1).mean() > 0.6 and (things[~paper] == 0).mean() > 0.95


def test_paper_keeps_its_outline_where_a_stretch_of_it_is_blurred():
    photo = paper_on_a_plane({(20, 30): (240, 240, 240)})
    paper = photo[..., 0] == 240
    photo[28:34] = ndimage.uniform_filter(photo, (1, 25, 1))[28:34]
    things = find_things(photo, np.ones((60, 80), bool), CONFIG)
    assert things.max() == 1
    assert ((things == 1) & paper).sum() > 0.8 * ((things == 1) | paper).sum()


@pytest.mark.parametrize("cost, num", [(161.0, 1), (159.0, 2)])
def test_a_border_stays_where_it_saves_more_blur_than_it_costs(cost, num):
    """Halves of 20 pixels that differ by 8, with 4 pixels of border: 20 * 20 / 40 * 64 / 4."""
    colors = np.zeros((4, 10, 1))
    colors[:, 5:] = 8
    segments = np.tile(np.repeat([0, 1], 5), (4, 1))
    merged = merge_alike(colors, segments, cost)
    assert len(np.unique(merged)) == num


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (20, 30)])
def test_what_stays_apart_is_worth_its_border(shape):
    rng = np.random.default_rng(shape[1])
    colors = ndimage.gaussian_filter(rng.normal(0, 30, (*shape, 3)), (2, 2, 0))
    segments = np.arange(np.prod(shape)).reshape(shape)
    merged = merge_alike(colors, segments, 5.0)
    assert np.array_equal(np.unique(merged), np.arange(merged.max() + 1))
    means = np.array([colors[merged == k].mean(0) for k in range(merged.max() + 1)])
    areas = np.bincount(merged.ravel())
    sides = [(merged[:-1], merged[1:]), (merged[:, :-1], merged[:, 1:])]
    touch = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in sides])
    touch = np.sort(touch[touch[:, 0] != touch[:, 1]], 1)
    for (a, b), length in zip(*np.unique(touch, axis=0, return_counts=True)):
        blur = areas[a] * areas[b] / (areas[a] + areas[b]) * ((means[a] - means[b]) ** 2).sum()
        assert blur >= 5.0 * length
    assert shape != (20, 30) or 10 < len(areas) < 300


def test_merging_can_be_cancelled():
    def check():
        raise Cancelled

    with pytest.raises(Cancelled):
        find_things(paper_on_a_plane({}), np.ones((60, 80), bool), CONFIG, check)


@pytest.mark.parametrize(
    "color, rows, columns",
    [((240, 240, 240), 8, 8), ((60, 60, 65), 18, 12), ((30, 30, 30), 3, 40)],
)
def test_cards_phones_and_pens_are_things(color, rows, columns):
    photo = paper_on_a_plane({})
    photo[20 : 20 + rows, 20 : 20 + columns] = color
    things = find_things(photo, np.ones((60, 80), bool), CONFIG)
    shown = (photo == color).all(-1)
    assert things.max() == 1
    assert ((things == 1) & shown).sum() > 0.8 * ((things == 1) | shown).sum()


@pytest.mark.parametrize("sigma", [2, 4, 6])
def test_a_blurred_sheet_is_found(sigma):
    photo = np.full((240, 320, 3), (150, 120, 90), np.uint8)
    photo[90:150, 120:200] = 240
    sheet = photo[..., 2] == 240
    photo = ndimage.gaussian_filter(photo, (sigma, sigma, 0))
    things = find_things(photo, np.ones((240, 320), bool), CONFIG)
    label = np.bincount(things[sheet]).argmax()
    assert label > 0 and iou([things], label, [sheet], True) > 0.7


def test_tiles_and_printed_roses_are_no_things():
    tops, lefts = np.meshgrid(np.arange(4, 210, 40), np.arange(4, 290, 48))
    tiles = {corner: (240, 240, 240) for corner in zip(tops.ravel(), lefts.ravel())}
    paper = {(60, 80): (40, 90, 160)}
    photo = np.full((240, 320, 3), (150, 120, 90), np.uint8)
    for (top, left), color in {**tiles, **paper}.items():
        photo[top : top + 20, left : left + 24] = color
    things = find_things(photo, np.ones((240, 320), bool), CONFIG)
    assert things.max() == 1
    assert (photo[things == 1, 2] == 160).all()


def test_colour_that_is_mostly_not_on_the_plane_is_no_flat_thing():
    photo = paper_on_a_plane({(20, 30): (240, 240, 240)})
    seen = np.ones((60, 80), bool)
    assert find_things(photo, seen, CONFIG).any()
    seen[15:32, 25:60] = False
    assert not find_things(photo, seen, CONFIG).any()


def paper_on_the_table(view, truth):
    """The pixels of a view that show a sheet on the table beside the box."""
    x, y = np.moveaxis(view.points()[..., :2], -1, 0)
    return (truth == ON_TABLE) & (x > 0.65) & (x < 1.15) & (np.abs(y) < 0.35)


@pytest.fixture(scope="module")
def painted(scene):
    """The photos of the scene with that sheet, and where it is in each."""
    papers = [paper_on_the_table(*pair) for pair in zip(*scene[1:])]
    photos = [np.where(paper[..., None], 240, photo) for paper, photo in zip(papers, scene[0])]
    return [photo.astype(np.uint8) for photo in photos], papers


def find_flat_things(photos, views, surface, report=None):
    planes, ids = find_surface_planes(surface, CONFIG)
    planes = SurfacePlanes(tuple(planes), surface.positions, ids, 4 * surface.size)
    cell = surface.size / PIXELS
    shown = surface.pixel_voxels
    return flat_things(photos, views, shown, planes, cell, CONFIG, report or SilentReport())


def test_a_flat_thing_has_one_number_in_all_views(scene, surface, painted):
    found = find_flat_things(painted[0], scene[1], surface)
    assert max(labels.max() for labels in found) == 1
    shown, paper = np.stack(found) == 1, np.stack(painted[1])
    assert (shown & paper).sum() > 0.7 * (shown | paper).sum()  # borders snap to the photo later
    assert not any(labels.any() for labels in find_flat_things(*scene[:2], surface))


def test_paper_is_no_part_of_the_table_as_a_surface(scene, surface, painted):
    planes, ids = find_surface_planes(surface, CONFIG)
    planes = SurfacePlanes(tuple(planes), surface.positions, ids, 4 * surface.size)
    found = without_things(planes, surface.pixel_voxels, painted[1])
    x, y, _ = surface.positions.T
    paper = (ids == 1) & (x > 0.7) & (x < 1.1) & (np.abs(y) < 0.3)
    beside = (ids == 1) & ((x < 0.6) | (x > 1.2) | (np.abs(y) > 0.4))
    assert paper.sum() > 20 and not found.plane_of_voxel[paper].any()
    assert (found.plane_of_voxel[beside] == 1).all()


def test_looking_for_flat_things_can_be_cancelled(scene, surface):
    class CancelAtOnce(SilentReport):
        def check(self):
            raise Cancelled

    with pytest.raises(Cancelled):
        find_flat_things(*scene[:2], surface, CancelAtOnce())


def test_what_stands_on_a_plane_takes_nothing_of_what_lies_there(scene, surface, painted):
    planes, plane_of_voxel = find_surface_planes(surface, CONFIG)
    regions, plane_regions = segment(surface, planes, plane_of_voxel, CONFIG)
    everywhere = np.ones((HEIGHT, WIDTH), np.int32)
    first = (painted[0][0], surface.pixel_voxels[0], everywhere)
    labels, sure = label_photo(*first, regions, plane_regions, CONFIG)
    assert (sure != labels).any() and np.isin(sure[sure != labels], 0).all()
    is_flat = labels == regions.max() + 1
    assert is_flat[painted[1][0]].mean() > 0.9
    assert is_flat[scene[2][0] == ON_BOX].mean() < 0.1


def test_the_picture_of_a_large_plane_has_larger_cells(scene, surface):
    (plane,), plane_of_voxel = find_surface_planes(surface, CONFIG)
    table = surface.positions[plane_of_voxel == 1]
    fine, coarse = (PlaneGrid.covering(plane, table, 0.01, cells) for cells in (10**6, 2500))
    assert fine.cell == 0.01 and coarse.cell > 0.05
    assert coarse.shape[0] * coarse.shape[1] < 2 * 2500


def test_borders_snap_to_colour_edges():
    photo = paper_on_a_plane({(20, 30): (240, 240, 240)})
    labels = np.ones((60, 80), np.int32)
    labels[20:40, 32:56] = 2  # two columns off
    snapped = snap(photo, labels, 1.0, replace(CONFIG, snap_sigma=0.1))
    assert np.array_equal(snapped == 2, photo[..., 0] == 240)


# ---- the whole way


@pytest.fixture(scope="module")
def trained(scene):
    """Splats as a perfect training would leave them: small discs on box and table."""
    rng = np.random.default_rng(0)
    radius, angle = TABLE * np.sqrt(rng.random(2500)), 2 * np.pi * rng.random(2500)
    table = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.zeros(2500)], 1)
    table = table[np.abs(table[:, :2]).max(1) > BOX]
    axis, sign = rng.integers(0, 3, 900), rng.choice([-1, 1], 900)
    box = rng.uniform(-BOX, BOX, (900, 3))
    box[np.arange(900), axis] = sign * BOX
    box[:, 2] += BOX
    turns = np.array([[0.5**0.5, 0, 0.5**0.5, 0], [0.5**0.5, 0.5**0.5, 0, 0], [1, 0, 0, 0]])
    quats = np.concatenate([np.tile([1.0, 0, 0, 0], (len(table), 1)), turns[axis]])
    means = np.concatenate([table, box])
    gaussians = splats(means, quats, np.tile([0.045, 0.045, 0.002], (len(means), 1)))
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    poses = [look_at_origin(angle) for angle in np.arange(12) * np.pi / 6]
    cameras = [Camera(torch.tensor(p, dtype=torch.float32), K, WIDTH, HEIGHT) for p in poses]
    return gaussians, cameras


@pytest.fixture(scope="module")
def weights(trained):
    return blend_weights(*trained)


def blend_weights(gaussians, cameras):
    engine = load_engine("cpu")
    names = ("means", "quats", "scales", "opacities")
    return [engine.blend_weights(*(gaussians[name] for name in names), c) for c in cameras]


def test_photos_and_splats_become_label_maps(scene, trained, weights):
    photos, _, truths = scene
    maps, sure, planes = surface_label_maps(
        photos, trained[1], trained[0], weights, CONFIG, SilentReport()
    )
    assert [labels.dtype for labels in maps] == [np.int32] * 12
    assert all(labels.shape == (HEIGHT, WIDTH) for labels in maps)
    box = majority(np.stack(maps), truths, ON_BOX)
    assert iou(np.stack(maps), box, truths, ON_BOX) > 0.75
    told, said = np.stack(maps) > 0, np.stack(sure) > 0
    assert np.array_equal(np.stack(sure)[said], np.stack(maps)[said])
    assert 0.8 < said[told].mean() < 1
    on_plane = planes.plane_of_gaussian(trained[0]["means"].numpy()) == 1
    means = trained[0]["means"].numpy()
    assert on_plane[np.linalg.norm(means, axis=1) > 0.9].mean() > 0.95
    assert not on_plane[means[:, 2] > BOX].any()


def test_each_view_is_shown_when_its_depth_and_its_labels_are_found(scene, trained, weights):
    shown = []
    config = replace(CONFIG, voxel_pixels=(PIXELS, 1.3 * PIXELS))
    args = (scene[0], trained[1], trained[0], weights, config, SilentReport())
    maps, *_ = surface_label_maps(*args, lambda *view: shown.append(view))
    assert [view for view, _ in shown] == [*range(12), *range(0, 12, 2), *range(1, 12, 2)]
    assert all(labels is None for _, labels in shown[:12])
    assert all(labels is maps[view] for view, labels in shown[12:])


def test_photos_take_turns_with_the_voxel_sizes_and_the_first_makes_the_planes(
    scene, trained, weights
):
    def made(*pixels):
        config = replace(CONFIG, voxel_pixels=pixels)
        report = SilentReport()
        return surface_label_maps(scene[0], trained[1], trained[0], weights, config, report)

    fine, coarse = made(PIXELS), made(1.3 * PIXELS)
    both, _, planes = made(1.3 * PIXELS, PIXELS)
    turns = [coarse[0], fine[0]] * 6
    assert all(np.array_equal(both[view], turns[view][view]) for view in range(12))
    assert not all(np.array_equal(a, b) for a, b in zip(fine[0], coarse[0], strict=True))
    assert np.array_equal(planes.positions, coarse.planes.positions)


def test_all_photos_show_a_flat_thing_whatever_their_voxel_size(painted, trained, weights):
    config = replace(CONFIG, voxel_pixels=(PIXELS, 1.3 * PIXELS))
    photos, papers = painted
    cameras = trained[1]
    scene = (photos, cameras, trained[0], weights)
    maps, _, planes = surface_label_maps(*scene, config, SilentReport())
    inside, beside = np.array([[0.9, 0, 0], [0.9, 0.7, 0]], np.float32)
    assert planes.plane_of_gaussian(np.stack([inside, beside])).tolist() == [0, 1]
    for view in (0, 1, 10, 11):  # those that see it well, of both sizes
        inside = maps[view][papers[view]]
        label = np.bincount(inside).argmax()
        assert (inside == label).mean() > 0.7
        assert (maps[view] == label).sum() < 1.5 * papers[view].sum()


def test_equal_input_gives_equal_labels(scene, trained, weights):
    args = (scene[0], trained[1], trained[0], weights, CONFIG, SilentReport())
    first, second = surface_label_maps(*args)[0], surface_label_maps(*args)[0]
    assert all(np.array_equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("steps", [3, 15])
def test_a_cancel_stops_within_a_view(scene, trained, weights, steps):
    with pytest.raises(Cancelled):
        surface_label_maps(scene[0], trained[1], trained[0], weights, CONFIG, CancelAt(steps))


def test_a_scene_without_surfaces_is_refused(scene, trained):
    gaussians = {**trained[0], "opacities": torch.full_like(trained[0]["opacities"], -6)}
    args = (scene[0], trained[1], gaussians, blend_weights(gaussians, trained[1]), CONFIG)
    with pytest.raises(JobError, match="nowhere opaque in any of its 12 photos"):
        surface_label_maps(*args, SilentReport())


def test_views_without_overlap_are_refused(scene, trained, weights):
    """Two photos of the box from sides that show nothing in common."""
    photos, views, _ = scene
    left, right = (replace(view, depth=view.depth.copy()) for view in (views[0], views[0]))
    left.depth[:, WIDTH // 2 - 8 :] = 0
    right.depth[:, : WIDTH // 2 + 8] = 0
    with pytest.raises(JobError, match="No surface is seen by two of the 2 photos"):
        fuse(lab(photos[:2]), [left, right], PIXELS, CONFIG, SilentReport())
