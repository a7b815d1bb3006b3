# SPDX-License-Identifier: GPL-3.0-or-later
import json
import subprocess
from pathlib import Path

import bpy
import ewa
import numpy as np
import pytest

from blender_unified_lift.scene import schema
from blender_unified_lift.splats import engine
from unified_lift.ply import write_ply

ROOT = Path(__file__).resolve().parents[2]
BACKEND_PYTHON = ROOT / "build" / "env" / "bin" / "python"
OPENCV = np.diag([1.0, -1, -1, 1])  # to Blender's camera axes
BACKEND_RENDER = """
import json, sys
import numpy as np, torch
from unified_lift.ply import read_ply
from unified_lift.rendering import Camera, load_engine
splats, camera = read_ply(sys.argv[1]), json.loads(sys.argv[3])
names = ("means", "quats", "scales", "opacities", "sh0", "shN")
values = [torch.from_numpy(np.ascontiguousarray(getattr(splats, name))) for name in names]
viewmat, K = torch.tensor(camera["viewmat"]), torch.tensor(camera["K"])
with torch.no_grad():
    picture = load_engine("cpu").render(*values, Camera(viewmat, K, *camera["size"]))
np.save(sys.argv[2], torch.cat([picture.channels, picture.alphas[..., None]], -1).numpy())
"""


@pytest.fixture
def scene(addon):
    """A scene with a camera three units before the origin, rendered by the engine over nothing."""
    scene = bpy.context.scene
    render = scene.render
    render.engine = "UNIFIEDLIFT_SPLATS"
    render.resolution_x, render.resolution_y, render.resolution_percentage = 96, 64, 100
    render.film_transparent = True
    scene.view_settings.view_transform = "Standard"
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    scene.collection.objects.link(camera)
    scene.camera = camera
    camera.location, camera.rotation_euler = (0, -3, 0.3), (1.5, 0.1, 0)
    camera.data.clip_start = 0.01
    return scene


@pytest.fixture
def render(tmp_path):
    """A function that presses F12 and returns (H, W, 4), scene-linear, row 0 at the top."""

    def press_f12(file_format="OPEN_EXR"):
        scene = bpy.context.scene
        settings = scene.render.image_settings
        settings.file_format = file_format
        settings.color_mode = "RGBA"
        settings.color_depth = "32" if file_format == "OPEN_EXR" else "8"
        scene.render.filepath = str(tmp_path / f"render.{file_format[-3:].lower()}")
        bpy.ops.render.render(write_still=True)
        image = bpy.data.images.load(scene.render.filepath)
        if file_format == "PNG":
            image.alpha_mode = "CHANNEL_PACKED"
        pixels = np.empty(len(image.pixels), np.float32)
        image.pixels.foreach_get(pixels)
        size = image.size[1], image.size[0], 4
        bpy.data.images.remove(image)
        return pixels.reshape(size)[::-1]

    return press_f12


def _add(splats, name="Object"):
    obj = schema.make_splat_object(name, splats)
    bpy.context.scene.collection.objects.link(obj)
    return obj


def _pinhole(scene):
    """viewmat, K and size of the scene's camera, read from its settings by hand."""
    render, data = scene.render, scene.camera.data
    width = render.resolution_x * render.resolution_percentage // 100
    height = render.resolution_y * render.resolution_percentage // 100
    aspect = render.pixel_aspect_y / render.pixel_aspect_x
    wide = data.sensor_fit == "HORIZONTAL" or (
        data.sensor_fit == "AUTO" and width >= height * aspect
    )
    sensor = data.sensor_height if data.sensor_fit == "VERTICAL" else data.sensor_width
    side = width if wide else height * aspect
    fx = data.lens / sensor * side
    cx = width / 2 - data.shift_x * side
    cy = height / 2 + data.shift_y * side / aspect
    bpy.context.view_layer.update()
    viewmat = np.linalg.inv(np.array(scene.camera.matrix_world) @ OPENCV)
    return viewmat, np.array([[fx, 0, cx], [0, fx / aspect, cy], [0, 0, 1]]), (width, height)


def _expected(scene, splats):
    """Premultiplied display colours and alpha, (H, W, 4), by the float64 compositor."""
    image, alpha, _ = ewa.render(splats, np.eye(4), *_pinhole(scene))
    return np.concatenate([image, alpha[..., None]], -1)


def _to_display(pixels):
    """Premultiplied scene-linear to premultiplied display."""
    alpha = np.maximum(pixels[..., 3:], 1e-6)
    straight = pixels[..., :3] / alpha
    low = straight <= 0.0031308
    curve = np.where(low, 12.92 * straight, 1.055 * np.maximum(straight, 0) ** (1 / 2.4) - 0.055)
    return np.concatenate([curve * alpha, pixels[..., 3:]], -1)


def _psnr(image, reference):
    return -10 * np.log10(np.mean((image - reference) ** 2))


def test_f12_agrees_with_float64(scene, make_splats, render):
    splats = make_splats(300)
    _add(splats)
    assert _psnr(_to_display(render()), _expected(scene, splats)) > 55


@pytest.mark.parametrize(
    "settings",
    [
        {"shift_x": 0.1, "shift_y": -0.15},
        {"sensor_fit": "VERTICAL", "sensor_height": 20.0, "shift_y": 0.1},
        {"sensor_fit": "HORIZONTAL", "resolution_x": 48, "shift_x": 0.05},
        {"resolution_x": 48, "pixel_aspect_y": 1.4},
        {"pixel_aspect_x": 1.3, "shift_y": 0.1, "resolution_percentage": 51},
    ],
    ids=str,
)
def test_f12_follows_the_camera_settings(scene, make_splats, render, settings):
    for name, value in settings.items():
        setattr(
            scene.camera.data if hasattr(scene.camera.data, name) else scene.render, name, value
        )
    splats = make_splats(200)
    _add(splats)
    assert _psnr(_to_display(render()), _expected(scene, splats)) > 55


def test_f12_with_an_orthographic_camera(scene, make_splats, render):
    splats = make_splats(200)
    _add(splats)
    scene.camera.rotation_euler = (np.pi / 2, 0, 0)
    scene.camera.data.type, scene.camera.data.ortho_scale = "ORTHO", 3.0
    picture = _to_display(render())
    scene.camera.location.y, scene.camera.data.type = -3000, "PERSP"
    scene.camera.data.lens = 36 / 3 * 3000
    assert _psnr(picture, _expected(scene, splats)) > 45


@pytest.mark.parametrize("is_cropped", [False, True])
def test_a_border_renders_the_same_pixels(scene, make_splats, render, is_cropped):
    _add(make_splats(200))
    whole = render()
    settings = scene.render
    settings.use_border, settings.use_crop_to_border = True, is_cropped
    settings.border_min_x, settings.border_max_x = 0.25, 0.7
    settings.border_min_y, settings.border_max_y = 0.3, 0.8
    part = render()
    left, right, top, bottom = 24, 67, 64 - 51, 64 - 19
    if is_cropped:
        assert part.shape == (bottom - top, right - left, 4)
    else:
        assert part.shape == whole.shape
        part = part[top:bottom, left:right]
    np.testing.assert_allclose(part, whole[top:bottom, left:right], atol=1e-4)


def test_film_is_filled_with_the_world_colour(scene, make_splats, render):
    splats = make_splats(200)
    _add(splats)
    scene.render.film_transparent = False
    scene.world = bpy.data.worlds.new("World")
    scene.world.color = (0.2140411, 0, 1)  # .5, 0, 1 in display space
    expected = _expected(scene, splats)
    over = expected[..., :3] + (1 - expected[..., 3:]) * np.array([0.5, 0, 1])
    picture = render()
    assert np.all(picture[..., 3] == 1)
    assert _psnr(_to_display(picture)[..., :3], over) > 55


def test_a_saved_png_has_the_trained_colours(scene, make_splats, render):
    opaque = {"opacities": np.full(400, 9.0), "scales": np.full((400, 3), -2.0)}
    splats = make_splats(400, **opaque)
    _add(splats)
    expected = _expected(scene, splats)
    solid = expected[..., 3] > 0.995
    assert solid.mean() > 0.1
    difference = render("PNG")[..., :3] - np.clip(expected[..., :3], 0, 1)
    assert np.median(np.abs(difference[solid])) < 0.5 / 255
    assert np.quantile(np.abs(difference[solid]), 0.95) < 2 / 255


def test_only_what_renders_is_drawn(scene, make_splats, render):
    splats = make_splats(150, seed=1)
    _add(splats).hide_viewport = True  # no matter for renders
    _add(make_splats(150, seed=2)).hide_render = True
    mesh = bpy.data.meshes.new("Plane")
    mesh.from_pydata([(-1, -1, -1), (1, -1, -1), (0, -1, 1)], [], [(0, 1, 2)])
    scene.collection.objects.link(bpy.data.objects.new("Plane", mesh))
    assert _psnr(_to_display(render()), _expected(scene, splats)) > 55


@pytest.mark.parametrize("other", ["BLENDER_WORKBENCH", "CYCLES"])
def test_other_engines_show_no_points(scene, make_splats, render, other):
    _add(make_splats(500, 0))
    scene.render.engine = other
    if other == "CYCLES":
        scene.cycles.samples = 1
    assert not render().any()


def test_clipping_is_the_cameras(scene, make_splats, render):
    _add(make_splats(150))
    scene.camera.data.clip_end = 1.0
    assert not render().any()


def test_without_splats_the_picture_is_empty(scene, render):
    assert not render().any()


def test_without_a_camera_blender_says_so(scene, make_splats, render):
    _add(make_splats(10))
    scene.camera = None
    with pytest.raises(RuntimeError, match="camera"):
        render()


def test_a_picture_too_large_for_the_gpu_is_told(scene, make_splats, render):
    _add(make_splats(10))
    scene.render.resolution_x, scene.render.resolution_y = 40000, 8
    with pytest.raises(RuntimeError, match="The GPU has no room for 40000 x 8 pixels"):
        render()


def test_every_view_layer_renders_its_own(scene, make_splats, tmp_path, render):
    one, two = make_splats(100, seed=1), make_splats(100, seed=2)
    folders = [bpy.data.collections.new(name) for name in ("One", "Two")]
    for splats, folder in zip((one, two), folders):
        folder.objects.link(schema.make_splat_object(folder.name, splats))
        scene.collection.children.link(folder)
    second = scene.view_layers.new("Second")
    scene.view_layers[0].layer_collection.children["Two"].exclude = True
    second.layer_collection.children["One"].exclude = True
    second.use = False
    first_picture = render()
    assert _psnr(_to_display(first_picture), _expected(scene, one)) > 55
    second.use, scene.view_layers[0].use = True, False
    assert _psnr(_to_display(render()), _expected(scene, two)) > 55


def test_depth_joins_splats_with_meshes(scene, make_splats, render):
    """The recipe: a second scene with the meshes, and a Z Combine node over both."""
    opaque = {"opacities": np.full(2000, 9.0), "scales": np.full((2000, 3), -2.0)}
    splats = make_splats(2000, 0, **opaque)
    _add(splats)
    scene.view_layers[0].use_pass_z = True
    meshes = bpy.data.scenes.new("Meshes")
    meshes.collection.objects.link(scene.camera)
    meshes.camera = scene.camera
    scene.camera.rotation_euler = (np.pi / 2, 0, 0)
    scene.camera.location = (0, -3, 0)
    plane = bpy.data.meshes.new("Plane")
    plane.from_pydata([(-9, 0, -9), (0, 0, -9), (0, 0, 9), (-9, 0, 9)], [], [(0, 1, 2, 3)])
    wall = bpy.data.objects.new("Wall", plane)
    wall.location.y = -1.8  # before all splats, covers the left half
    meshes.collection.objects.link(wall)
    meshes.render.engine = "BLENDER_WORKBENCH"
    meshes.render.resolution_x, meshes.render.resolution_y = 96, 64
    meshes.render.film_transparent = True
    meshes.view_layers[0].use_pass_z = True
    _combine_by_depth(meshes, scene)
    alone = render()
    bpy.context.window.scene = meshes
    meshes.render.image_settings.file_format = "OPEN_EXR"
    picture = render()
    assert picture[24:40, 8:40, 3].min() > 0.99
    assert np.ptp(picture[24:40, 8:40, :3], axis=-1).max() < 0.02  # the grey wall alone
    assert np.ptp(alone[24:40, 8:40, :3], axis=-1).max() > 0.3
    assert alone[24:40, 52:64, 3].min() > 0.9
    np.testing.assert_allclose(picture[24:40, 52:64], alone[24:40, 52:64], atol=0.02)


def _combine_by_depth(meshes, splats):
    if hasattr(meshes, "compositing_node_group"):  # 5.0
        tree = bpy.data.node_groups.new("Join", "CompositorNodeTree")
        tree.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
        meshes.compositing_node_group = tree
        output = tree.nodes.new("NodeGroupOutput")
    else:
        meshes.use_nodes = True
        tree = meshes.node_tree
        tree.nodes.clear()
        output = tree.nodes.new("CompositorNodeComposite")
    combine = tree.nodes.new("CompositorNodeZcombine")
    for scene, color, depth in ((meshes, 0, 1), (splats, 2, 3)):
        layers = tree.nodes.new("CompositorNodeRLayers")
        layers.scene = scene
        tree.links.new(layers.outputs["Image"], combine.inputs[color])
        tree.links.new(layers.outputs["Depth"], combine.inputs[depth])
    tree.links.new(combine.outputs[0], output.inputs[0])


def test_blenders_panels_serve_the_engine(addon):
    def served():
        panels = bpy.types.Panel.__subclasses__()
        return {p.__name__ for p in panels if name in getattr(p, "COMPAT_ENGINES", ())}

    name = engine.UNIFIEDLIFT_RE_splats.bl_idname
    wanted = {"RENDER_PT_format", "RENDER_PT_output", "RENDER_PT_opengl_film", "DATA_PT_lens"}
    wanted |= {"VIEWLAYER_PT_layer", "RENDER_PT_color_management", "OBJECT_PT_visibility"}
    assert wanted <= served()
    assert not {"RENDER_PT_opengl_lighting", "DATA_PT_camera_dof"} & served()
    bpy.ops.preferences.addon_disable(module="blender_unified_lift")
    assert not served()
    bpy.ops.preferences.addon_enable(module="blender_unified_lift")


@pytest.mark.skipif(not BACKEND_PYTHON.exists(), reason="no build/env: run build.py test")
def test_f12_agrees_with_the_backend(scene, make_splats, render, tmp_path):
    splats = make_splats(2000)
    _add(splats)
    write_ply(tmp_path / "scene.ply", splats)
    viewmat, K, size = _pinhole(scene)
    camera = {"viewmat": viewmat.tolist(), "K": K.tolist(), "size": size}
    picture_path = tmp_path / "backend.npy"
    arguments = [str(tmp_path / "scene.ply"), str(picture_path), json.dumps(camera)]
    subprocess.run([BACKEND_PYTHON, "-c", BACKEND_RENDER, *arguments], check=True, timeout=120)
    assert _psnr(_to_display(render()), np.load(picture_path)) > 50
