# SPDX-License-Identifier: GPL-3.0-or-later
"""All engines against the reference, and the native core against plain numpy and torch."""

from __future__ import annotations

import _ctypes
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import unified_lift
from unified_lift.config import RenderConfig
from unified_lift.protocol import JobError
from unified_lift.rendering import Camera, load_engine
from unified_lift.rendering.cpu import CpuEngine
from unified_lift.rendering.native.compile import is_current
from unified_lift.rendering.native.targets import TARGETS, host_targets, library_path, sign
from unified_lift.rendering.reference import ReferenceEngine, photometric_loss, spherical_harmonics
from unified_lift.rendering.weights import BlendWeights

NAMES = ("means", "quats", "scales", "opacities")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def engine(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return load_engine(request.param, num_threads=2)


@pytest.fixture(scope="module")
def cpu():
    return CpuEngine(num_threads=2)


def make_camera(width=45, height=31):
    """A camera three units before the origin that looks past it, slightly turned."""
    angle = 0.2
    viewmat = torch.eye(4)
    viewmat[:3, :3] = torch.tensor(
        [
            [math.cos(angle), 0.0, math.sin(angle)],
            [0.0, 1.0, 0.0],
            [-math.sin(angle), 0.0, math.cos(angle)],
        ]
    )
    viewmat[:3, 3] = torch.tensor([0.1, -0.2, 3.0])
    focal = 0.9 * max(width, height)
    K = torch.tensor([[focal, 0, 0.48 * width], [0, 1.1 * focal, 0.53 * height], [0, 0, 1.0]])
    return Camera(viewmat, K, width, height)


def make_gaussians(num, seed=0, spread=1.0, scale=-2.0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "means": spread * torch.randn(num, 3, generator=generator),
        "quats": torch.randn(num, 4, generator=generator),
        "scales": scale + 0.5 * torch.randn(num, 3, generator=generator),
        "opacities": torch.randn(num, generator=generator),
    }


def make_needles():
    gaussians = make_gaussians(80, seed=1)
    gaussians["scales"][:, 0] = 0.5
    gaussians["scales"][:, 1:] = -5.0
    return gaussians


def make_huge():
    return make_gaussians(30, seed=2, spread=0.5, scale=2.0)


def make_behind_camera():
    gaussians = make_gaussians(120, seed=3, spread=3.0)
    assert (gaussians["means"][:, 2] < -3).any()
    return gaussians


def make_zero_opacity():
    gaussians = make_gaussians(60, seed=4)
    gaussians["opacities"][::2] = -20.0
    return gaussians


def make_crowded():
    """A thousand faint Gaussians over one pixel or two, which become opaque together."""
    return make_gaussians(1000, seed=5, spread=0.02, scale=-4.0)


SCENES = {
    "random": lambda: make_gaussians(200),
    "needles": make_needles,
    "huge": make_huge,
    "behind camera": make_behind_camera,
    "zero opacity": make_zero_opacity,
    "crowded": make_crowded,
    "one": lambda: make_gaussians(1, seed=6, spread=0.1),
}


def leaves(tensors, device="cpu", dtype=torch.float32):
    return {k: t.detach().to(device, dtype).requires_grad_() for k, t in tensors.items()}


def run(engine, function, tensors, camera, dtype=torch.float32, **options):
    """Channels, alphas and the gradients of a random linear function of both."""
    inputs = leaves(tensors, engine.device, dtype)
    render = getattr(engine, function)(**inputs, camera=camera, **options)
    generator = torch.Generator().manual_seed(9)
    v_channels = torch.randn(render.channels.shape, generator=generator)
    v_alphas = torch.randn(render.alphas.shape, generator=generator)
    loss = (render.channels * v_channels.to(render.channels)).sum()
    loss = loss + (render.alphas * v_alphas.to(render.alphas)).sum()
    loss.backward()
    return render, {k: t.grad.cpu().double() for k, t in inputs.items()}


def assert_same_image(actual, expected):
    error = (actual.detach().cpu().double() - expected.detach()).abs()
    # Rounding decides whether a Gaussian counts where its alpha is 1/255: a step of that size.
    assert error.max() < 0.01
    assert (error > 1e-4).double().mean() < 1e-3


def assert_same_gradients(actual, expected):
    for name, gradient in expected.items():
        error = (actual[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 1e-3, (name, error)


def assert_conforms(engine, function, tensors, camera, **options):
    reference = ReferenceEngine(engine.config)
    actual, gradients = run(engine, function, tensors, camera, **options)
    expected, expected_gradients = run(
        reference, function, tensors, camera, torch.float64, **options
    )
    assert_same_image(actual.channels, expected.channels)
    assert_same_image(actual.alphas, expected.alphas)
    assert_same_gradients(gradients, expected_gradients)
    return actual, expected


@pytest.mark.parametrize("num_channels", [1, 3, 16, 19])
@pytest.mark.parametrize("scene", SCENES)
def test_blends_any_channels_like_the_reference(engine, scene, num_channels):
    gaussians = SCENES[scene]()
    generator = torch.Generator().manual_seed(7)
    channels = torch.randn(len(gaussians["means"]), num_channels, generator=generator)
    assert_conforms(engine, "rasterize", gaussians | {"channels": channels}, make_camera())


def needles():
    """Long, thin, and one of them flat as well."""
    gaussians = make_gaussians(3, seed=1, spread=0.2)
    gaussians["scales"] = torch.tensor([[1.5, -9, -9], [-9, 2, -9], [0.5, -12, -3]])
    return gaussians


def covering_all():
    gaussians = make_gaussians(3, seed=2, spread=0.3)
    gaussians["scales"][:] = torch.tensor([4.5, 4, 3.5])
    return gaussians


def all_behind():
    gaussians = make_gaussians(100, seed=3)
    gaussians["means"][:, 2] = -3.5 - gaussians["means"][:, 2].abs()
    return gaussians


def all_transparent():
    gaussians = make_gaussians(40, seed=4)
    gaussians["opacities"][:] = -30
    return gaussians


def thousands_in_one_pixel():
    """Along the ray of one pixel; their depths differ by more than float32 rounds."""
    viewmat, K, width, height = make_camera()
    gaussians = make_gaussians(4000, seed=5, scale=-7)
    depths = torch.linspace(2, 4, 4000)[torch.randperm(4000)]
    pixel = torch.tensor([width // 2 + 0.5, height // 2 + 0.5, 1])
    points = depths[:, None] * (torch.linalg.inv(K) @ pixel)
    gaussians["means"] = (points - viewmat[:3, 3]) @ viewmat[:3, :3]
    return gaussians


DEGENERATE = {
    "needles": (needles, (45, 31)),
    "covering all": (covering_all, (45, 31)),
    "covering one pixel": (covering_all, (1, 1)),
    "all behind": (all_behind, (45, 31)),
    "all transparent": (all_transparent, (45, 31)),
    "thousands in one pixel": (thousands_in_one_pixel, (45, 31)),
    "none": (lambda: make_gaussians(0), (45, 31)),
}


@pytest.mark.parametrize("num_channels", [3, 19])
@pytest.mark.parametrize("scene", DEGENERATE)
def test_degenerate_scenes_are_drawn_to_the_last_pixel(engine, scene, num_channels):
    """No pixel is off by 1e-4, no parameter's gradient by 1e-3 of its norm."""
    make, size = DEGENERATE[scene]
    tensors = make()
    generator = torch.Generator().manual_seed(7)
    tensors["channels"] = torch.randn(len(tensors["means"]), num_channels, generator=generator)
    actual, expected = assert_conforms(engine, "rasterize", tensors, make_camera(*size))
    for ours, truth in zip(actual[:2], expected[:2], strict=True):
        assert (ours.detach().cpu().double() - truth.detach()).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 3), (5, 40)])
def test_renders_any_size(engine, size):
    tensors = make_gaussians(150) | {"channels": torch.rand(150, 3)}
    assert_conforms(engine, "rasterize", tensors, make_camera(*size))


@pytest.mark.parametrize("num_coefficients", [0, 3, 8, 15])
def test_renders_colours_of_any_degree_over_a_background(engine, num_coefficients):
    generator = torch.Generator().manual_seed(8)
    tensors = make_gaussians(100) | {
        "sh0": torch.randn(100, 1, 3, generator=generator),
        "shN": 0.3 * torch.randn(100, num_coefficients, 3, generator=generator),
    }
    background = torch.tensor([0.2, 0.5, 0.9], device=engine.device)
    assert_conforms(engine, "render", tensors, make_camera(), background=background)


def test_gives_the_gradient_of_projected_means(engine):
    tensors = make_gaussians(100) | {"sh0": torch.rand(100, 1, 3), "shN": torch.zeros(100, 0, 3)}
    actual, expected = assert_conforms(
        engine, "render", tensors, make_camera(), want_means2d_grad=True
    )
    assert expected.means2d_grad.norm() > 0
    gradients = actual.means2d_grad.cpu().double(), expected.means2d_grad
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


def test_nothing_renders_as_background(cpu):
    tensors = make_gaussians(0) | {"sh0": torch.zeros(0, 1, 3), "shN": torch.zeros(0, 3, 3)}
    background = torch.tensor([0.1, 0.2, 0.3])
    render, _ = run(cpu, "render", tensors, make_camera(), background=background)
    assert torch.equal(render.channels, background.expand_as(render.channels))
    assert len(cpu.blend_weights(**make_gaussians(0), camera=make_camera()).weights) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [*NAMES, "sh0", "shN"])
def test_a_gaussian_that_is_not_finite_is_culled(cpu, name, value):
    tensors = make_gaussians(50) | {"sh0": torch.rand(50, 1, 3), "shN": torch.rand(50, 3, 3)}
    rest = {k: t[1:] for k, t in tensors.items()}
    tensors[name][0] = value
    render, gradients = run(cpu, "render", tensors, make_camera())
    expected, expected_gradients = run(cpu, "render", rest, make_camera())
    assert torch.equal(render.channels, expected.channels)
    for key, gradient in gradients.items():
        assert torch.equal(gradient[1:], expected_gradients[key])
        assert not gradient[0].any()


def test_extreme_sizes_stay_finite(cpu):
    tensors = make_gaussians(6) | {"channels": torch.rand(6, 3)}
    tensors["scales"] = torch.tensor(
        [[60.0, 60, 60], [30, -30, -30], [-80, -80, -80], [12, -9, -9], [3, 3, 3], [9, 9, -20]]
    )
    tensors["quats"][0] = 0
    render, gradients = run(cpu, "rasterize", tensors, make_camera())
    assert render.channels.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("shape", [(40, 33), (11, 11), (10, 40), (1, 1)])
def test_photometric_loss_is_that_of_plain_torch(engine, shape):
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(*shape, 3, generator=generator)
    image = 0.7 * target + 0.3 * torch.rand(*shape, 3, generator=generator)
    actual = image.clone().to(engine.device).requires_grad_()
    loss = engine.photometric_loss(actual, target.to(engine.device), 0.2)
    (3 * loss).backward()
    expected = image.double().requires_grad_()
    expected_loss = photometric_loss(expected, target.double(), 0.2, RenderConfig())
    (3 * expected_loss).backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    error = actual.grad.cpu().double() - expected.grad
    assert error.norm() < 1e-4 * expected.grad.norm()


def test_blend_weights_are_those_of_the_reference(engine):
    gaussians, camera = make_gaussians(200), make_camera()
    actual = engine.blend_weights(**leaves(gaussians, engine.device), camera=camera)
    reference = ReferenceEngine(engine.config)
    expected = reference.blend_weights(
        **{k: t.double() for k, t in gaussians.items()}, camera=camera
    )
    assert len(actual.weights) > 5000
    assert np.array_equal(actual.indptr, expected.indptr)
    assert np.array_equal(actual.gaussian_ids, expected.gaussian_ids)
    difference = actual.weights.astype(int) - expected.weights.astype(int)
    assert np.abs(difference).max() <= 1


def test_blend_weights_lack_only_what_is_faint(cpu):
    gaussians, camera = make_gaussians(300), make_camera()
    values = torch.rand(300, 16)
    render = cpu.rasterize(**gaussians, channels=values, camera=camera)
    weights = cpu.blend_weights(**gaussians, camera=camera)
    missing = render.alphas.flatten() - torch.from_numpy(weights.alphas())
    lost = render.channels.flatten(0, 1) - weights.blend(values)
    assert missing.mean() < 0.03
    assert (lost >= -1e-3).all()  # rounded weights may be larger
    assert (lost <= missing[:, None] + 1e-3).all()


def scipy_weights(weights):
    return BlendWeights(
        *(weights.indptr, weights.gaussian_ids, weights.weights),
        *(weights.width, weights.height, weights.num_gaussians),
    )


@pytest.mark.parametrize("subset", [False, True])
@pytest.mark.parametrize("num_channels", [1, 7, 8, 16, 27])
def test_native_blending_is_the_sparse_product(cpu, num_channels, subset):
    camera = make_camera()
    native = cpu.blend_weights(**make_gaussians(100), camera=camera)
    assert native.core and len(native.weights) > 8 * 100 * 2  # enough to be cut into parts
    pixels = torch.randint(0, camera.width * camera.height, (700,)) if subset else None
    results = []
    for weights in (native, scipy_weights(native)):
        values = torch.linspace(-1, 1, 100 * num_channels).reshape(100, -1).requires_grad_()
        blended = weights.blend(values, pixels)
        blended.sin().sum().backward()
        results.append((blended.detach(), values.grad))
    for native_result, expected in zip(*results):
        assert native_result.shape == expected.shape
        assert (native_result - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max())


def test_mask_mass_sums_weights_by_label(cpu):
    camera = make_camera()
    weights = cpu.blend_weights(**make_gaussians(150), camera=camera)
    labels = np.random.default_rng(0).integers(-1, 9, camera.width * camera.height)
    labels[labels == 4] = 3  # a label without pixels
    mass = weights.mask_mass(labels, 10)
    expected = np.zeros((10, 150))
    dense = weights.matrix().toarray()
    for label in range(10):
        expected[label] = dense[labels == label].sum(0)
    assert mass.shape == (10, 150) and mass.dtype == np.float32
    assert mass.nnz == np.count_nonzero(expected)
    assert np.allclose(mass.toarray(), expected, rtol=1e-5)
    assert np.allclose(scipy_weights(weights).mask_mass(labels, 10).toarray(), expected, rtol=1e-4)


def everything(engine):
    """All results of an engine on one scene, as a list of arrays."""
    tensors = make_gaussians(5000, scale=-3.0)
    tensors |= {"sh0": torch.rand(5000, 1, 3), "shN": torch.rand(5000, 8, 3)}
    camera = make_camera(150, 90)
    render, gradients = run(engine, "render", tensors, camera, want_means2d_grad=True)
    image = render.channels.detach().requires_grad_()
    loss = engine.photometric_loss(image, torch.full_like(image, 0.5), 0.2)
    loss.backward()
    weights = engine.blend_weights(*(tensors[name] for name in NAMES), camera)
    values = torch.rand(5000, 16).requires_grad_()
    weights.blend(values).square().sum().backward()
    mass = weights.mask_mass(np.arange(150 * 90) // 1000, 14)
    results = [*render, loss, image.grad, *gradients.values(), values.grad]
    arrays = [result.detach().numpy() for result in results]
    return [*arrays, weights.gaussian_ids, weights.weights, mass.data, mass.indices]


def test_results_are_the_same_bits_for_any_number_of_threads():
    runs = []
    for num_threads in (1, 2, 3):
        torch.manual_seed(0)
        runs.append(everything(CpuEngine(num_threads)))
    for results in runs[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(runs[0], results))


def test_torch_leaves_the_threads_to_the_native_core():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        load_engine("cpu", num_threads=2)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_reference_projects_and_shades_like_gsplat():
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl")
    from unified_lift.rendering.reference import project

    gaussians = {k: t.double() for k, t in make_gaussians(300, spread=2.0).items()}
    camera, config = make_camera(), RenderConfig()
    ellipses = project(*gaussians.values(), gaussians["means"], camera, config)
    covars, _ = gsplat._quat_scale_to_covar_preci(
        gaussians["quats"], gaussians["scales"].exp(), compute_preci=False
    )
    _, means2d, _, conics, _ = gsplat._fully_fused_projection(
        gaussians["means"], covars, camera.viewmat[None].double(), camera.K[None].double(),
        camera.width, camera.height,
    )  # fmt: skip
    assert torch.allclose(means2d[0, ellipses.ids], ellipses.means2d)
    expected = conics[0, ellipses.ids]
    assert torch.allclose(expected[:, 0], ellipses.conics[:, 0, 0])
    assert torch.allclose(expected[:, 1], ellipses.conics[:, 0, 1])
    assert torch.allclose(expected[:, 2], ellipses.conics[:, 1, 1])
    directions = torch.nn.functional.normalize(gaussians["means"], dim=-1)
    basis = gsplat._eval_sh_bases_fast(16, directions)
    assert torch.allclose(basis, spherical_harmonics(directions), atol=1e-7)


def test_an_unknown_device_is_a_clear_error():
    with pytest.raises(JobError, match="Unknown device 'tpu'"):
        load_engine("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a machine without CUDA")
def test_cuda_without_a_device_is_a_clear_error_and_auto_goes_on():
    with pytest.raises(JobError, match="Choose the device 'cpu'"):
        load_engine("cuda")
    assert load_engine("auto").name == "cpu"


def test_the_native_core_is_built_from_these_sources():
    built = [name for name in host_targets() if library_path(name).exists()]
    assert built, "python -m unified_lift.rendering.native.compile"
    assert is_current(built[0])


def copied_package(tmp_path):
    return shutil.copytree(Path(unified_lift.__file__).parent, tmp_path / "unified_lift")


def test_a_library_of_other_sources_is_not_left_to_be_packed(tmp_path):
    libraries = copied_package(tmp_path) / "rendering" / "native" / "lib"
    other = next(name for name in TARGETS if name not in host_targets())
    stale = libraries / library_path(other).name
    stale.write_bytes(b"built from other sources")
    sign(stale)
    program = "import sys; from unified_lift.rendering.native.compile import main; sys.exit(main())"
    assert run_python(program, PYTHONPATH=str(tmp_path)).returncode == 0
    left = [path.name for path in libraries.iterdir()]
    assert not any(name.startswith(stale.name) for name in left)
    assert library_path(host_targets()[0]).name in left


def test_a_damaged_library_is_compiled_again(tmp_path):
    package = Path(unified_lift.__file__).parent
    copied = copied_package(tmp_path)
    path = copied / library_path(host_targets()[0]).relative_to(package)
    os.truncate(path, path.stat().st_size - 100)  # its source hash is still there
    program = "from unified_lift.rendering.native.compile import is_current\n"
    program += f"print(is_current({host_targets()[0]!r}))"
    assert run_python(program, PYTHONPATH=str(tmp_path)).stdout.strip() == "False"


def test_nothing_is_said_where_nothing_is_compiled():
    command = [sys.executable, "-I", "-m", "unified_lift.rendering.native.compile"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout + result.stderr == ""


def run_python(program, **environment):
    """A process of its own, which may be refused or hold much memory."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


HUGE_VIEW = """
import torch, resource
from unified_lift.rendering import Camera
from unified_lift.rendering.cpu import CpuEngine
torch.manual_seed(0)
K = torch.tensor([[7000, 0, 4000], [0, 7000, 3000], [0, 0, 1.0]])
camera = Camera(torch.eye(4), K, 8000, 6000)
means = torch.randn(NUM, 3) * torch.tensor([1, 1, 0.1]) + torch.tensor([0, 0, 5.0])
shape = (torch.randn(NUM, 4), torch.full((NUM, 3), LOG_SCALE), torch.zeros(NUM))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.no_grad():
    render = CpuEngine(2).rasterize(means, *shape, torch.rand(NUM, 3), camera)
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(render.alphas.mean().item(), held / 1024)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="asks how much memory a process has held")
def test_a_huge_view_takes_memory_for_its_pixels_only():
    result = run_python(HUGE_VIEW.replace("NUM", "100").replace("LOG_SCALE", "-2.0"))
    assert result.returncode == 0, result.stderr
    coverage, megabytes = map(float, result.stdout.split())
    unit = 1024 if sys.platform == "darwin" else 1  # there getrusage counts bytes
    assert 0.01 < coverage < 1
    assert megabytes / unit < 1.25 * 8000 * 6000 * 4 * (3 + 1 + 1 + 1) / 2**20


@pytest.mark.skipif(sys.platform == "win32", reason="shares the program above")
def test_a_view_with_too_many_pairs_is_refused_before_it_takes_the_memory():
    program = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_AS, (8 << 30,) * 2)\n{HUGE_VIEW}"
    )
    result = run_python(program.replace("NUM", "20000").replace("LOG_SCALE", "2.0"))
    assert result.returncode == 1
    assert "8000 x 6000 pixels with 20000 Gaussians is too large" in result.stderr


@pytest.mark.parametrize(
    "content", [b"no library", Path(_ctypes.__file__).read_bytes()], ids=["garbage", "other"]
)
def test_a_library_that_does_not_load_is_a_clear_error(tmp_path, content):
    package = Path(unified_lift.__file__).parent
    shutil.copytree(package, tmp_path / "unified_lift", ignore=shutil.ignore_patterns("lib"))
    path = tmp_path / "unified_lift" / library_path(host_targets()[0]).relative_to(package)
    path.parent.mkdir()
    path.write_bytes(content)
    sign(path)
    program = "import unified_lift.rendering as r\nr.load_engine('cpu')"
    result = run_python(program, PYTHONPATH=str(tmp_path))
    assert f"JobError: The native core {path} does not load" in result.stderr
    assert result.stderr.rstrip().endswith("Reinstall it.")


@pytest.mark.skipif(len(host_targets()) < 2, reason="this machine has one library")
@pytest.mark.parametrize("share", [0, 0.4, 0.97], ids=["empty", "half", "most"])
def test_a_slower_library_takes_the_place_of_a_damaged_one(tmp_path, share):
    package = Path(unified_lift.__file__).parent
    copied = shutil.copytree(package, tmp_path / "unified_lift")
    fastest = next(path for path in map(library_path, host_targets()) if path.exists())
    path, slower = (copied / library_path(name).relative_to(package) for name in host_targets()[:2])
    for target in (path, slower):  # a development build has the fastest alone
        shutil.copyfile(fastest, target)
        sign(target)
    os.truncate(path, int(share * path.stat().st_size))
    program = "import logging, unified_lift.rendering as r\nlogging.basicConfig()\n"
    program += "print(r.load_engine('cpu').core.library._name)"
    result = run_python(program, PYTHONPATH=str(tmp_path))
    assert result.stdout.strip() == str(slower), result.stderr
    assert f"The native core {path} is damaged" in result.stderr


def test_without_a_native_core_auto_is_the_reference_and_says_why(tmp_path):
    package = Path(unified_lift.__file__).parent
    shutil.copytree(package, tmp_path / "unified_lift", ignore=shutil.ignore_patterns("lib"))
    program = (
        "import unified_lift.rendering as r, logging; logging.basicConfig()\n"
        "print(r.__file__, r.load_engine('auto').name, r.load_engine('auto').name)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(str(tmp_path))
    assert result.stdout.endswith("reference reference\n")
    assert result.stderr.count("No native core for this machine") == 1
